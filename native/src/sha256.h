// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace moshi {

class Sha256 {
   public:
    void feed(std::string_view bytes);
    // The digest in hexadecimal digits; nothing can be fed after it.
    std::string digest();

   private:
    void block(const uint8_t* bytes);
    std::array<uint32_t, 8> hash_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::string rest_;
    uint64_t length_ = 0;
};

// The digest of a file. Throws Error if it cannot be read.
std::string sha256_of(const std::string& path);

}  // namespace moshi

// UTF-8, byte by byte.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moshi {

inline constexpr std::string_view replacement = "\xEF\xBF\xBD";

// `code` appended to `out`; a surrogate or a number beyond Unicode as the replacement character.
void append_utf8(std::string& out, uint32_t code);

bool is_utf8(std::string_view text);

// Decodes a stream whose characters may be cut anywhere. What cannot be completed becomes a replacement character, one for each longest
// beginning of a character, as the Unicode standard recommends.
class Utf8Decoder {
   public:
    // The characters completed by `byte`.
    std::string feed(uint8_t byte);
    // What is left of an unfinished character.
    std::string flush();
    // The bytes of the unfinished character, three at most.
    const std::string& pending() const { return pending_; }
    // Takes up where another decoder was; false if `bytes` are not the beginning of a character.
    bool resume(std::string_view bytes);
    // Whether anything so far had to be replaced.
    bool damaged() const { return damaged_; }

   private:
    std::string pending_;
    bool damaged_ = false;
    int missing_ = 0;                   // bytes that the character still lacks
    uint8_t low_ = 0x80, high_ = 0xBF;  // between which the next byte lies
};

}  // namespace moshi

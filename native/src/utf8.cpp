#include "utf8.h"

#include <utility>

namespace moshi {

void append_utf8(std::string& out, uint32_t code) {
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
        out += replacement;
    } else if (code < 0x80) {
        out += char(code);
    } else if (code < 0x800) {
        out += {char(0xC0 | code >> 6), char(0x80 | (code & 0x3F))};
    } else if (code < 0x10000) {
        out += {char(0xE0 | code >> 12), char(0x80 | (code >> 6 & 0x3F)), char(0x80 | (code & 0x3F))};
    } else {
        out += {char(0xF0 | code >> 18), char(0x80 | (code >> 12 & 0x3F)), char(0x80 | (code >> 6 & 0x3F)),
                char(0x80 | (code & 0x3F))};
    }
}

std::string Utf8Decoder::feed(uint8_t byte) {
    std::string out;
    if (missing_ > 0 && (byte < low_ || byte > high_)) out = flush();
    if (missing_ > 0) {
        pending_ += char(byte);
        low_ = 0x80, high_ = 0xBF;
        if (--missing_ == 0) out += std::exchange(pending_, {});
        return out;
    }
    if (byte < 0x80) return out += char(byte);
    if (byte < 0xC2 || byte > 0xF4) {
        damaged_ = true;
        return out += replacement;
    }
    missing_ = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
    // No overlong forms, no surrogates, nothing beyond Unicode.
    low_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;
    high_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;
    pending_ = char(byte);
    return out;
}

std::string Utf8Decoder::flush() {
    if (missing_ == 0) return {};
    missing_ = 0;
    damaged_ = true;
    pending_.clear();
    return std::string(replacement);
}

bool Utf8Decoder::resume(std::string_view bytes) {
    *this = {};
    for (char c : bytes)
        if (!feed(uint8_t(c)).empty()) {
            *this = {};
            return false;
        }
    return true;
}

bool is_utf8(std::string_view text) {
    Utf8Decoder decoder;
    for (char c : text) decoder.feed(uint8_t(c));
    return decoder.pending().empty() && !decoder.damaged();
}

}  // namespace moshi

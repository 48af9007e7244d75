#include "text.h"

#include <algorithm>
#include <cmath>

namespace moshi {

namespace {

constexpr std::string_view word_mark = "\u2581";
constexpr int32_t boundary = 0, pad = 3;

// A piece with its word marks as spaces.
std::string spaced(std::string_view piece) {
    std::string out;
    for (size_t at; (at = piece.find(word_mark)) != std::string_view::npos; piece.remove_prefix(at + word_mark.size()))
        out.append(piece.substr(0, at)).append(" ");
    return out.append(piece);
}

// Without what a terminal would obey: control characters, separators of lines and paragraphs (U+2028, U+2029), and those that turn the
// direction of what follows (U+202A to U+202E, U+2066 to U+2069). Tabs and ends of lines become spaces; where line ends are kept, tabs go.
std::string printable(const std::string& text, bool keep_newline) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        auto at = [&](size_t n) { return i + n < text.size() ? uint8_t(text[i + n]) : 0; };
        uint8_t c = at(0);
        bool is_turn = c == 0xE2 && ((at(1) == 0x80 && at(2) >= 0xA8 && at(2) <= 0xAE) || (at(1) == 0x81 && at(2) >= 0xA6 && at(2) <= 0xA9));
        if (is_turn) i += 2;
        else if (c == 0xC2 && at(1) >= 0x80 && at(1) < 0xA0) ++i;
        else if (c == '\n' || c == '\t' || c == '\r') {
            if (!keep_newline) out += ' ';
            else if (c == '\n') out += c;
        }
        else if (c >= 0x20 && c != 0x7F) out += char(c);
    }
    return out;
}

uint8_t byte_of(const std::string& piece) { return uint8_t(std::stoi(piece.substr(3, 2), nullptr, 16)); }

bool has(const TextInfo& table, int32_t token) { return token >= 0 && size_t(token) < table.pieces.size(); }

}  // namespace

std::string Detokenizer::feed(int32_t token) {
    const auto& silent = table_->silent;
    if (!has(*table_, token) || std::find(silent.begin(), silent.end(), token) != silent.end() || table_->kinds[size_t(token)] == 'c') return {};
    const std::string& piece = table_->pieces[size_t(token)];
    if (table_->kinds[size_t(token)] == 'b') return printable(bytes_.feed(byte_of(piece)), true);
    // A character cut short by an ordinary piece will never be completed.
    return flush() + printable(spaced(piece), true);
}

std::string spell(const TextInfo& table, const std::vector<int32_t>& tokens) {
    std::string out;
    Utf8Decoder bytes;
    for (int32_t token : tokens) {
        if (!has(table, token) || table.kinds[size_t(token)] == 'c') continue;
        const std::string& piece = table.pieces[size_t(token)];
        if (table.kinds[size_t(token)] == 'b') {
            out += bytes.feed(byte_of(piece));
            continue;
        }
        out += bytes.flush();
        // As sentencepiece writes a piece that it has no letters for.
        out += table.kinds[size_t(token)] == 'u' ? " \u2047 " : spaced(piece);
    }
    out += bytes.flush();
    out = printable(out, false);
    size_t start = out.find_first_not_of(' ');
    return start == std::string::npos ? "" : out.substr(start, out.find_last_not_of(' ') + 1 - start);
}

void WordTimer::feed(std::string_view text, int64_t frame, std::deque<Word>& done) {
    for (char c : text) {
        if (c == ' ' || c == '\n') {
            flush(done);
            continue;
        }
        if (text_.empty()) first_ = frame;
        text_ += c;
        last_ = frame;
    }
}

void WordTimer::flush(std::deque<Word>& done) {
    if (!text_.empty()) done.push_back({std::move(text_), double(first_) / frame_rate_, double(last_ + 1) / frame_rate_});
    text_.clear();
}

WordStream::WordStream(const TextInfo& table, double frame_rate, double delay_seconds)
    : table_(&table), frame_rate_(frame_rate), delay_(int64_t(std::floor(delay_seconds * frame_rate))) {}

void WordStream::feed(int32_t token, std::deque<Word>& done) {
    if (++step_ < delay_) return;
    if (token != boundary && token != pad) {
        pieces_.push_back(token);
        return;
    }
    begin(done);
    if (token == boundary) {
        boundary_ = step_ - delay_;
        complete(double(boundary_) / frame_rate_, done);
    }
}

void WordStream::begin(std::deque<Word>& done) {
    if (pieces_.empty()) return;
    complete(-1, done);
    open_ = {spell(*table_, pieces_), double(boundary_) / frame_rate_, -1};
    is_open_ = true;
    pieces_.clear();
}

void WordStream::complete(double end, std::deque<Word>& done) {
    if (!is_open_) return;
    is_open_ = false;
    open_.end = end;
    if (!open_.text.empty()) done.push_back(std::move(open_));
}

void WordStream::flush(std::deque<Word>& done) {
    begin(done);
    complete(-1, done);
}

}  // namespace moshi

// Text tokens to text while they come: valid UTF-8, whole words, times.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "manifest.h"
#include "utf8.h"

namespace moshi {

// One token a frame -> the text that is complete. Bytes wait until they make a character; padding and control characters, which would
// reach a terminal, give nothing.
class Detokenizer {
   public:
    explicit Detokenizer(const TextInfo& table) : table_(&table) {}
    std::string feed(int32_t token);
    std::string flush() { return bytes_.flush(); }
    const std::string& pending() const { return bytes_.pending(); }
    bool resume(std::string_view pending) { return bytes_.resume(pending); }

   private:
    const TextInfo* table_;
    Utf8Decoder bytes_;
};

// The text of several tokens at once, without the space before its first word.
std::string spell(const TextInfo& table, const std::vector<int32_t>& tokens);

struct Word {
    std::string text;
    double start, end;
};

// Groups the text of a reply into words: from the frame of a word's first piece to the end of that of its last.
class WordTimer {
   public:
    explicit WordTimer(double frame_rate) : frame_rate_(frame_rate) {}
    void feed(std::string_view text, int64_t frame, std::deque<Word>& done);
    void flush(std::deque<Word>& done);

   private:
    double frame_rate_;
    std::string text_;
    int64_t first_ = 0, last_ = 0;
};

// Words of speech-to-text, whose stream marks them: a boundary one step before the first piece, padding or the next boundary after the last.
class WordStream {
   public:
    WordStream(const TextInfo& table, double frame_rate, double delay_seconds);
    // The token of the next step, the model's first, before any sound, included.
    void feed(int32_t token, std::deque<Word>& done);
    void flush(std::deque<Word>& done);

   private:
    void complete(double end, std::deque<Word>& done);
    void begin(std::deque<Word>& done);

    const TextInfo* table_;
    double frame_rate_;
    int64_t delay_, step_ = 0, boundary_ = 0;
    std::vector<int32_t> pieces_;
    bool is_open_ = false;  // a word was said, and nothing has marked its end
    Word open_;
};

}  // namespace moshi

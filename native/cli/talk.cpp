// A recording through a model: its frames, then what follows them, and what comes of it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <optional>

#include "client.h"
#include "report.h"
#include "sound.h"

namespace {

// Speech-to-text hears this much silence after its delay, else the last word is not finished.
constexpr double transcript_tail = 1.0;

// Words one after the other in a recording of `duration` seconds: each lasts a `frame` at least and ends where the next begins at the
// latest. Where there are more words than frames, the first ones are shorter. The silence that follows the recording is not part of it.
void within(std::vector<SpokenWord>& words, double duration, double frame) {
    for (size_t i = 1; i < words.size(); ++i) words[i].start = std::max(words[i].start, words[i - 1].start + frame);
    double limit = duration;
    for (auto word = words.rbegin(); word != words.rend(); ++word) {
        double end = word->end < 0 ? limit : std::max(word->end, word->start + frame);
        word->end = std::max(0.0, std::min(end, limit));
        limit = word->start = std::max(0.0, std::min(word->start, word->end - frame));
    }
}

class Conversation {
   public:
    Conversation(Client& client, const Arguments& arguments)
        : client_(client), arguments_(arguments), reader_(arguments.input, client.info.sample_rate), silence_(frame_size(), 0.0f) {
        if (!arguments.output.empty() && client.info.codebooks == 0) throw UsageError("this model writes down what it hears and gives no sound; leave out OUT");
        if (!arguments.output.empty()) writer_.emplace(arguments.output, client.info.sample_rate);
    }

    int run() {
        const moshi_info& info = client_.info;
        double tail = info.is_translation ? 0 : arguments_.tail.value_or(0);
        auto before = int64_t(info.prefix_seconds * rate());
        int64_t after = std::llround(tail * rate());
        if (info.codebooks == 0) after += int64_t((info.delay_seconds + transcript_tail) * rate());
        lead_ = double(before) / rate();
        reader_.surround(before, after);
        std::vector<float> pcm;
        while (!interrupted() && reader_.frame(pcm, frame_size())) {
            // The reply lasts as long as input and tail, to the sample.
            if (reader_.ended() && !info.is_translation) length_ = reader_.samples() + after;
            step(pcm, 0);
        }
        if (!interrupted() && reader_.samples() == 0) throw std::runtime_error(reader_.name() + " holds no sound; check that the right input was recorded");
        if (!interrupted() && reader_.was_silent()) throw std::runtime_error(reader_.name() + " holds nothing but digital silence; check that the right input was recorded");
        if (!interrupted() && info.is_translation) finish_translation();
        if (interrupted()) return 130;
        finish();
        return 0;
    }

   private:
    Client& client_;
    const Arguments& arguments_;
    SoundReader reader_;
    std::optional<SoundWriter> writer_;
    std::vector<float> silence_;
    // Of a translation: what was said since its last word, which may be nothing but silence.
    std::vector<std::vector<float>> held_;
    bool marked_ = false, complete_ = false;
    // Silence heard before the recording.
    double lead_ = 0;
    int64_t written_ = 0, length_ = INT64_MAX;
    Outcome outcome_;

    size_t frame_size() const { return size_t(client_.info.frame_size); }
    double rate() const { return client_.info.sample_rate; }

    void step(const std::vector<float>& pcm, int32_t flags) {
        moshi_frame frame{};
        frame.size = sizeof frame;
        check(moshi_step(client_.session.get(), pcm.data(), flags, &frame));
        outcome_.milliseconds.push_back(frame.milliseconds);
        tell(frame.text);
        take_words();
        if (client_.info.codebooks == 0) return;
        held_.emplace_back(frame_size(), 0.0f);
        if (frame.samples > 0) held_.back().assign(frame.pcm, frame.pcm + frame.samples);
        if (client_.info.is_translation && marked_ && !wanted(frame)) return;
        release();
    }

    // Whether the frames held are part of the translation by now; of one that the model does not end, nothing is kept after its last word.
    bool wanted(const moshi_frame& frame) {
        complete_ = frame.complete;
        if (complete_ && !client_.info.keeps_last) held_.pop_back();
        return complete_ || frame.text_token != client_.info.pad_token;
    }

    void release() {
        for (const auto& pcm : held_) {
            auto count = size_t(std::min<int64_t>(int64_t(pcm.size()), length_ - written_));
            if (writer_) writer_->write(pcm.data(), count);
            written_ += int64_t(count);
        }
        held_.clear();
    }

    void tell(const char* text) {
        if (!*text) return;
        bool first = outcome_.text.empty();
        outcome_.text += text;
        if (arguments_.json) return;
        if (first && *text == ' ') ++text;
        std::FILE* out = arguments_.output == "-" ? stderr : stdout;
        std::fputs(text, out);
        std::fflush(out);
    }

    void take_words() {
        moshi_word word{};
        word.size = sizeof word;
        auto seconds = [this](double time) { return time < 0 ? time : std::max(0.0, time - lead_); };
        while (moshi_next_word(client_.session.get(), &word) == 1) outcome_.words.push_back({word.text, seconds(word.start), seconds(word.end)});
    }

    void finish_translation() {
        marked_ = true;
        step(silence_, MOSHI_ENDED);
        auto most = std::llround(arguments_.tail.value_or(client_.info.tail_seconds) * rate() / double(frame_size()));
        for (int64_t i = 0; i < most && !complete_ && !interrupted(); ++i) step(silence_, 0);
        if (!complete_) std::fprintf(stderr, "%s: the model did not end its translation in time; cut after the last word\n", arguments_.input.c_str());
    }

    void finish() {
        check(moshi_flush(client_.session.get()));
        take_words();
        if (!arguments_.json) {
            std::fputs("\n", arguments_.output == "-" ? stderr : stdout);
            std::fflush(stdout);
        }
        if (writer_) writer_->commit();
        if (!arguments_.save.empty()) check(moshi_save(client_.session.get(), arguments_.save.c_str()));
        outcome_.input = arguments_.input;
        outcome_.output = arguments_.output;
        bool writes_down = client_.info.codebooks == 0;
        outcome_.duration = double(writes_down ? reader_.samples() : written_) / rate();
        if (writes_down) within(outcome_.words, outcome_.duration, double(frame_size()) / rate());
        outcome_.is_translation = client_.info.is_translation;
        outcome_.complete = complete_;
        size_t start = outcome_.text.find_first_not_of(' ');
        outcome_.text.erase(0, std::min(start, outcome_.text.size()));
        report(outcome_, double(frame_size()) / rate(), arguments_.json);
    }
};

}  // namespace

int talk(Client& client, const Arguments& arguments) { return Conversation(client, arguments).run(); }

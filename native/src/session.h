// A conversation, or a stream of the codec each way.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "model.h"
#include "text.h"

namespace moshi {

struct Options {
    uint32_t seed = 0;
    float temp = 0, temp_text = 0;
    int32_t top_k = 0, top_k_text = 0;
    int32_t start = 0;
};

// Those that the checkpoint was published with.
Options default_options(const Manifest& manifest);
// Throws Error for what the model cannot do.
void check_options(const Manifest& manifest, const Options& options);

// What a step gave; buffers live until the next one.
struct Reply {
    std::vector<float> pcm, pauses;
    std::vector<int32_t> tokens;  // text, then codes
    std::string text;
    bool complete = false;
    int64_t index = 0;
};

// Lives on the worker's thread.
class Session {
   public:
    Session(std::shared_ptr<Model> model, const Options& options);

    void reset(const Options& options);
    void set_sampling(const Options& options);
    const Reply& step(const float* pcm, bool ended);
    bool next_word(Word& word);
    void flush();
    void save(const std::string& path) const;
    void restore(const std::string& path);
    std::vector<int32_t> encode(const float* pcm);
    std::vector<float> decode(const int32_t* codes);

    const Manifest& manifest() const { return model_->manifest(); }
    const Arrays& state() const { return state_; }

   private:
    void require(const std::string& function, const char* what) const;
    // Calls a function and evaluates what comes of it.
    Arrays run(const std::string& function, const Arrays& inputs);
    Arrays advance(const float* pcm, bool ended);
    void lead_in();
    void start_text();
    void read_words(int32_t token, const std::string& text, int64_t index);
    int32_t last_text_token() const;
    mlx::core::array sound(const float* pcm) const;

    std::shared_ptr<Model> model_;
    Options options_;
    Arrays state_, sampling_;
    bool broken_ = false;
    // Model steps so far, and at the beginning of the conversation.
    int64_t steps_ = 0, first_ = 0;
    bool ended_ = false;
    Reply reply_;
    std::optional<Detokenizer> text_;
    std::optional<WordTimer> timer_;
    std::optional<WordStream> stream_;
    std::deque<Word> words_;
};

}  // namespace moshi

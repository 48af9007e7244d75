#include "session.h"

#include <algorithm>
#include <cmath>

#include "conversation.h"
#include "error.h"
#include "mlx/memory.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace mx = mlx::core;

namespace moshi {

namespace {

const std::string seed_name = state_prefix + "lm.seed", offset_name = state_prefix + "lm.offset", tokens_name = state_prefix + "lm.tokens";

constexpr float loudest = 8;

int64_t offset_of(const Arrays& state) { return values<int32_t>(state.at(offset_name))[0]; }

void check_temperature(float value, const char* name) {
    if (!(value >= 0 && value <= 1e6f)) fail(name, " should be a temperature of 0 (greedy) or more, found ", value);
}

void check_top_k(int32_t value, const TopK& limit, const char* name) {
    if (value < 0) fail(name, " should be 0 (all) or more, found ", value);
    if (value > limit.most && value < limit.all)
        fail(name, " should be 0 to ", limit.most, ", found ", value);
}

}  // namespace

Options default_options(const Manifest& m) {
    if (!m.sampling) return {};
    return {0, m.sampling->temp, m.sampling->temp_text, m.sampling->top_k.usual, m.sampling->top_k_text.usual, 0};
}

void check_options(const Manifest& m, const Options& options) {
    if (options.start < 0 || size_t(options.start) >= m.starts.size()) fail("start should be 0 to ", m.starts.size() - 1, ", found ", options.start);
    if (!m.sampling) return;
    check_temperature(options.temp, "temp");
    check_temperature(options.temp_text, "temp_text");
    check_top_k(options.top_k, m.sampling->top_k, "top_k");
    check_top_k(options.top_k_text, m.sampling->top_k_text, "top_k_text");
}

Session::Session(std::shared_ptr<Model> model, const Options& options) : model_(std::move(model)) { reset(options); }

void Session::set_sampling(const Options& options) {
    check_options(manifest(), options);
    if (!manifest().sampling) return;
    uint32_t seed = options_.seed;
    int32_t start = options_.start;
    options_ = options;
    options_.seed = seed;
    options_.start = start;
    auto give = [this](const char* name, auto value) { sampling_.insert_or_assign(sampling_prefix + name, mx::array(value)); };
    give("temp", options.temp);
    give("temp_text", options.temp_text);
    // As many as there are is all.
    give("top_k", options.top_k < manifest().sampling->top_k.all ? options.top_k : 0);
    give("top_k_text", options.top_k_text < manifest().sampling->top_k_text.all ? options.top_k_text : 0);
}

void Session::reset(const Options& options) {
    set_sampling(options);
    options_ = options;
    broken_ = false;
    state_ = model_->start(size_t(options.start));
    if (model_->has("first")) {
        state_.insert_or_assign(seed_name, mx::array({options.seed}));
        run("first", sampling_);
        steps_ = offset_of(state_);
        if (manifest().translation && manifest().translation->lead_in) lead_in();
        first_ = steps_;
    }
    ended_ = false;
    reply_ = {};
    start_text();
}

void Session::lead_in() {
    // What the model was trained to hear first: one silent frame, after which the encoder begins anew.
    std::vector<float> silence(size_t(manifest().frame_size), 0.0f);
    advance(silence.data(), false);
    for (auto& [name, array] : model_->start(size_t(options_.start)))
        if (name.starts_with(state_prefix + "encoder.")) state_.insert_or_assign(name, array);
}

void Session::start_text() {
    words_.clear();
    text_.reset();
    timer_.reset();
    stream_.reset();
    if (!manifest().text) return;
    text_.emplace(*manifest().text);
    if (manifest().transcript) {
        stream_.emplace(*manifest().text, manifest().frame_rate, manifest().transcript->delay_seconds);
        stream_->feed(last_text_token(), words_);
    } else {
        timer_.emplace(manifest().frame_rate);
    }
}

void Session::require(const std::string& function, const char* what) const {
    if (broken_) fail("the conversation was lost by an error before; begin a new one with moshi_reset");
    if (!model_->has(function)) fail(manifest().folder, " is ", what);
}

Arrays Session::run(const std::string& function, const Arrays& inputs) {
    broken_ = true;
    Arrays results = model_->call(function, state_, inputs);
    evaluate(results, state_);
    broken_ = false;
    return results;
}

mx::array Session::sound(const float* pcm) const {
    for (int32_t i = 0; i < manifest().frame_size; ++i) {
        if (!std::isfinite(pcm[i])) fail("sample ", i, " of the frame is not a number");
        // Whole numbers that were made floats without being divided.
        if (std::abs(pcm[i]) > loudest) fail("sample ", i, " of the frame is ", pcm[i], "; sound lies between -1 and 1");
    }
    return mx::array(pcm, {1, manifest().frame_size}, mx::float32);
}

Arrays Session::advance(const float* pcm, bool ended) {
    Arrays inputs = sampling_;
    inputs.insert_or_assign("pcm", sound(pcm));
    if (ended) inputs.insert_or_assign("ended", mx::array({true}));
    const auto& capacities = manifest().rings->capacities;
    int64_t capacity = model_->capacity(state_);
    bool grows = steps_ >= capacity && capacity < capacities.back();
    if (grows) model_->grow(state_, *std::upper_bound(capacities.begin(), capacities.end(), capacity));
    bool replies = model_->has("frame") && steps_ + 1 > manifest().delay;
    Arrays results = run(replies ? "frame" : "hear", inputs);
    // The smaller rings will not be needed again.
    if (grows) mx::clear_cache();
    ++steps_;
    return results;
}

const Reply& Session::step(const float* pcm, bool ended) {
    require("first", "a codec; call moshi_encode and moshi_decode");
    if (ended && !manifest().translation) fail("only translation models are told that their source is over");
    if (ended && ended_) fail("the source has ended already");
    Arrays results = advance(pcm, ended);
    ended_ = ended_ || ended;
    reply_.index = steps_ - first_ - 1;
    reply_.tokens = values<int32_t>(results.at("tokens"));
    reply_.pcm = results.contains("pcm") ? values<float>(results.at("pcm")) : std::vector<float>{};
    reply_.pauses.clear();
    if (results.contains("pauses")) {
        mx::array wide = mx::astype(results.at("pauses"), mx::float32);
        mx::eval(wide);
        reply_.pauses = values<float>(wide);
    }
    int32_t token = reply_.tokens[0];
    reply_.text = text_ ? text_->feed(token) : "";
    reply_.complete = reply_.complete || (ended_ && token == manifest().translation->end);
    read_words(token, reply_.text, reply_.index);
    return reply_;
}

void Session::read_words(int32_t token, const std::string& text, int64_t index) {
    if (timer_) timer_->feed(text, index, words_);
    if (stream_) stream_->feed(token, words_);
}

void Session::flush() {
    if (timer_) {
        timer_->feed(text_->flush(), reply_.index, words_);
        timer_->flush(words_);
    }
    if (stream_) stream_->flush(words_);
}

bool Session::next_word(Word& word) {
    if (words_.empty()) return false;
    word = std::move(words_.front());
    words_.pop_front();
    return true;
}

void Session::save(const std::string& path) const {
    require("first", "a codec, which has no conversations");
    write_conversation(*model_, state_, text_ ? &text_->pending() : nullptr, path);
}

void Session::restore(const std::string& path) {
    if (!model_->has("first")) require("first", "a codec, which has no conversations");
    // The reader compares with a state of this model, of which only the forms matter.
    Conversation found = read_conversation(*model_, model_->start(0), path);
    if (offset_of(found.state) < first_) fail(path, " is damaged: its conversation has not begun");
    if (text_) {
        Detokenizer fresh(*manifest().text);
        if (!fresh.resume(found.pending)) fail(path, " is damaged: its text ends in no character");
    }
    state_ = std::move(found.state);
    broken_ = ended_ = false;
    reply_ = {};
    steps_ = offset_of(state_);
    start_text();
    if (text_) text_->resume(found.pending);
}

int32_t Session::last_text_token() const { return values<int32_t>(state_.at(tokens_name))[size_t(manifest().delay)]; }

std::vector<int32_t> Session::encode(const float* pcm) {
    require("encode", "no codec; export one with --codec");
    return values<int32_t>(run("encode", {{"pcm", sound(pcm)}}).at("codes"));
}

std::vector<float> Session::decode(const int32_t* codes) {
    require("decode", "no codec; export one with --codec");
    for (int32_t k = 0; k < manifest().codebooks; ++k)
        if (codes[k] < 0 || codes[k] >= manifest().card) fail("code ", k, " should be 0 to ", manifest().card - 1, ", found ", codes[k]);
    mx::array given(codes, {1, manifest().codebooks}, mx::int32);
    return values<float>(run("decode", {{"codes", given}}).at("pcm"));
}

}  // namespace moshi

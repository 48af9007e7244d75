// moshi-threads FOLDER FOLDER: ten threads, two models, sessions freed in any order; every conversation as if it were alone.
#include <cmath>
#include <thread>
#include <vector>

#include "check.h"
#include "moshi.h"

namespace {

constexpr int threads = 10, frames = 12;

// What a conversation said, as one number.
uint64_t talk(moshi_model* model, uint32_t seed) {
    moshi_options options{};
    options.size = sizeof options;
    CHECK(moshi_default_options(model, &options) == 0);
    options.seed = seed;
    moshi_session* session = moshi_session_new(model, &options);
    CHECK(session);
    moshi_info info{};
    info.size = sizeof info;
    CHECK(moshi_describe(model, &info) == 0);
    std::vector<float> pcm(size_t(info.frame_size));
    moshi_frame frame{};
    frame.size = sizeof frame;
    uint64_t said = seed;
    for (int t = 0; t < frames; ++t) {
        for (size_t i = 0; i < pcm.size(); ++i) pcm[i] = 0.1f * std::sin(float(i) * 0.05f * float(t + 1));
        CHECK(moshi_step(session, pcm.data(), 0, &frame) == 0);
        for (int k = 0; k < frame.code_count; ++k) said = said * 31 + uint64_t(int64_t(frame.codes[k]));
        said = said * 31 + uint64_t(int64_t(frame.text_token));
    }
    // A refusal on one thread is not heard on another.
    std::string before = moshi_error();
    CHECK(moshi_step(session, nullptr, 0, &frame) < 0);
    CHECK(std::string(moshi_error()) == "pcm is NULL");
    moshi_session_free(session);
    return said;
}

}  // namespace

int main(int count, char** values) {
    CHECK(count == 3);
    moshi_model* models[2] = {};
    std::thread loaders[2];
    for (int i = 0; i < 2; ++i) loaders[i] = std::thread([&, i] { models[i] = moshi_load(values[i + 1], nullptr, nullptr); });
    for (auto& loader : loaders) loader.join();
    CHECK(models[0] && models[1]);
    uint64_t alone[threads], together[threads];
    for (int i = 0; i < threads; ++i) alone[i] = talk(models[i % 2], uint32_t(i));
    std::vector<std::thread> talkers;
    for (int i = 0; i < threads; ++i) talkers.emplace_back([&, i] { together[i] = talk(models[i % 2], uint32_t(i)); });
    for (auto& talker : talkers) talker.join();
    for (int i = 0; i < threads; ++i) CHECK(alone[i] == together[i]);

    // Sessions outlive their model, and go in another order than they came.
    std::vector<moshi_session*> sessions;
    for (int i = 0; i < 6; ++i) sessions.push_back(moshi_session_new(models[i % 2], nullptr));
    moshi_free(models[1]);
    moshi_free(models[0]);
    std::vector<float> pcm(1920, 0.0f);
    moshi_frame frame{};
    frame.size = sizeof frame;
    for (int i : {3, 0, 5, 1, 4, 2}) {
        CHECK(sessions[size_t(i)] && moshi_step(sessions[size_t(i)], pcm.data(), 0, &frame) == 0);
        std::thread([&] { moshi_session_free(sessions[size_t(i)]); }).join();
    }

    // A session that goes while others still call it is gone for them.
    moshi_model* model = moshi_load(values[1], nullptr, nullptr);
    moshi_session* session = moshi_session_new(model, nullptr);
    CHECK(model && session);
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i)
        callers.emplace_back([&] {
            moshi_frame own{};
            own.size = sizeof own;
            for (int t = 0; t < frames; ++t)
                CHECK(moshi_step(session, pcm.data(), 0, &own) == 0 || std::string(moshi_error()) == "this session was freed before, or never was one");
        });
    moshi_session_free(session);
    for (auto& caller : callers) caller.join();
    moshi_free(model);
    std::puts("ok");
}

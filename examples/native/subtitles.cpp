// subtitles FOLDER < sound.raw: words with their times, one a line, while the sound comes in. For speech-to-text models, and for the
// words of a reply. Sound is 16-bit samples at the model's rate.
#include <moshi.h>

#include <cstdio>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

struct Free {
    void operator()(moshi_model *model) const { moshi_free(model); }
    void operator()(moshi_session *session) const { moshi_session_free(session); }
};

template <class T>
T *checked(T *handle) {
    if (!handle) throw std::runtime_error(moshi_error());
    return handle;
}

int32_t checked(int32_t status) {
    if (status < 0) throw std::runtime_error(moshi_error());
    return status;
}

void show_words(moshi_session *session, double lead) {
    moshi_word word{};
    word.size = sizeof word;
    while (checked(moshi_next_word(session, &word)) == 1) std::printf("%7.2f  %s\n", word.start - lead, word.text);
    std::fflush(stdout);
}

void run(const char *folder) {
    std::unique_ptr<moshi_model, Free> model(checked(moshi_load(folder, nullptr, nullptr)));
    moshi_info info{};
    info.size = sizeof info;
    checked(moshi_describe(model.get(), &info));
    std::unique_ptr<moshi_session, Free> session(checked(moshi_session_new(model.get(), nullptr)));
    std::vector<int16_t> raw(static_cast<size_t>(info.frame_size));
    std::vector<float> pcm(raw.size());
    moshi_frame frame{};
    frame.size = sizeof frame;
    const double seconds = double(info.frame_size) / info.sample_rate;
    double lead = 0;
    // Silence before the sound, as the model was trained, and after it, for the words that are still to come.
    for (; lead < info.prefix_seconds; lead += seconds) checked(moshi_step(session.get(), pcm.data(), 0, &frame));
    while (std::fread(raw.data(), sizeof raw[0], raw.size(), stdin) == raw.size()) {
        for (size_t i = 0; i < raw.size(); ++i) pcm[i] = float(raw[i]) / 32768;
        checked(moshi_step(session.get(), pcm.data(), 0, &frame));
        show_words(session.get(), lead);
    }
    pcm.assign(pcm.size(), 0.0f);
    for (double tail = 0; tail < info.delay_seconds + 1; tail += seconds) checked(moshi_step(session.get(), pcm.data(), 0, &frame));
    checked(moshi_flush(session.get()));
    show_words(session.get(), lead);
}

}  // namespace

int main(int count, char **values) {
    try {
        run(count > 1 ? values[1] : ".");
    } catch (const std::exception &e) {
        std::fprintf(stderr, "error: %s\n", e.what());
        return 1;
    }
}

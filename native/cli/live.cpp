// Microphone and loudspeaker through PortAudio: its callback only moves samples between two rings, the model steps on this thread.
#include <portaudio.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "client.h"

namespace {

// Samples from one thread to another, neither of which waits.
class Ring {
   public:
    explicit Ring(size_t size) : samples_(size) {}
    size_t waiting() const { return written_.load(std::memory_order_acquire) - read_.load(std::memory_order_acquire); }

    // What does not fit is lost.
    void write(const float* from, size_t count) {
        size_t at = written_.load(std::memory_order_relaxed), room = samples_.size() - (at - read_.load(std::memory_order_acquire));
        count = std::min(count, room);
        for (size_t i = 0; i < count; ++i) samples_[(at + i) % samples_.size()] = from[i];
        written_.store(at + count, std::memory_order_release);
    }

    // Silence where there is too little.
    void read(float* to, size_t count) {
        size_t at = read_.load(std::memory_order_relaxed), there = std::min(count, written_.load(std::memory_order_acquire) - at);
        for (size_t i = 0; i < count; ++i) to[i] = i < there ? samples_[(at + i) % samples_.size()] : 0.0f;
        read_.store(at + there, std::memory_order_release);
    }

   private:
    std::vector<float> samples_;
    std::atomic<size_t> written_{0}, read_{0};
};

struct Sound {
    Ring heard, said;
};

int callback(const void* input, void* output, unsigned long frames, const PaStreamCallbackTimeInfo*, PaStreamCallbackFlags, void* user) {
    auto* sound = static_cast<Sound*>(user);
    if (input) sound->heard.write(static_cast<const float*>(input), frames);
    sound->said.read(static_cast<float*>(output), frames);
    return paContinue;
}

void sound_check(PaError error) {
    if (error != paNoError) throw std::runtime_error(std::string("the sound devices cannot be used: ") + Pa_GetErrorText(error));
}

struct PortAudio {
    PaStream* stream = nullptr;
    PortAudio() { sound_check(Pa_Initialize()); }
    ~PortAudio() {
        if (stream) Pa_CloseStream(stream);
        Pa_Terminate();
    }
    PortAudio(const PortAudio&) = delete;
};

}  // namespace

int live(Client& client, const Arguments& arguments) {
    const auto size = size_t(client.info.frame_size);
    const int rate = client.info.sample_rate;
    // Two seconds each way, more than anybody wants to be behind.
    Sound sound{Ring(size_t(2 * rate)), Ring(size_t(2 * rate))};
    std::vector<float> pcm(size, 0.0f);
    moshi_frame frame{};
    frame.size = sizeof frame;
    PortAudio audio;
    sound_check(Pa_OpenDefaultStream(&audio.stream, 1, 1, paFloat32, rate, paFramesPerBufferUnspecified, callback, &sound));
    sound_check(Pa_StartStream(audio.stream));
    std::fputs("talk; Ctrl-C ends the conversation\n", stderr);
    while (!interrupted()) {
        if (sound.heard.waiting() < size) {
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
            continue;
        }
        sound.heard.read(pcm.data(), size);
        check(moshi_step(client.session.get(), pcm.data(), 0, &frame));
        sound.said.write(frame.pcm, size_t(frame.samples));
        std::fputs(frame.text, stdout);
        std::fflush(stdout);
    }
    std::fputs("\n", stdout);
    sound_check(Pa_AbortStream(audio.stream));
    if (!arguments.save.empty()) check(moshi_save(client.session.get(), arguments.save.c_str()));
    return 0;
}

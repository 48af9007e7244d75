// Sound in files and pipes: wav in the forms that recorders write, and raw 16-bit PCM.
#pragma once

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

class SoundReader {
   public:
    // Throws std::runtime_error for what cannot be used. "-": raw PCM from standard input.
    SoundReader(const std::string& path, int rate);
    // Silence before and after the recording, in samples.
    void surround(int64_t before, int64_t after) { before_ = before, after_ = after; }
    // The next `size` samples, the last frame filled with silence; false at the end.
    bool frame(std::vector<float>& out, size_t size);
    // Samples of the recording read so far, and whether it is over.
    int64_t samples() const { return samples_; }
    bool ended() const { return ended_; }
    bool was_silent() const { return silent_; }
    const std::string& name() const { return name_; }

   private:
    void read_header(int rate);
    size_t read(char* to, size_t bytes);
    size_t read_samples(float* out, size_t size);
    float sample(const unsigned char* bytes) const;

    std::string name_;
    std::FILE* file_ = nullptr;
    std::unique_ptr<std::FILE, int (*)(std::FILE*)> owned_{nullptr, std::fclose};
    int channels_ = 1, bytes_ = 2;
    bool is_float_ = false, silent_ = true, ended_ = false;
    uint64_t left_ = UINT64_MAX;  // bytes of sound that the header promises
    int64_t samples_ = 0, before_ = 0, after_ = 0;
};

// Writes 16-bit PCM; samples are clipped to -1..1. A file has another name until `commit`.
class SoundWriter {
   public:
    // "-": raw PCM to standard output.
    SoundWriter(const std::string& path, int rate);
    ~SoundWriter();
    SoundWriter(const SoundWriter&) = delete;
    void write(const float* pcm, size_t count);
    void commit();

   private:
    void put(const std::string& bytes);
    [[noreturn]] void refuse() const;

    std::string name_, path_, part_;  // in sentences; no path: standard output; no part: straight into it
    int rate_;
    std::FILE* file_ = nullptr;
    std::string kept_;
    uint64_t bytes_ = 0;
};

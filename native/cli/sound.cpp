#include "sound.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <utility>

#include "places.h"

namespace {

namespace fs = std::filesystem;

[[noreturn]] void wrong(const std::string& what) { throw std::runtime_error(what); }

uint32_t little_endian(const unsigned char* bytes, int count) {
    uint32_t value = 0;
    for (int i = count - 1; i >= 0; --i) value = value << 8 | bytes[i];
    return value;
}

void append(std::string& out, uint32_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out += char(value >> (8 * i));
}

// As libsndfile rounds, so that a file is the one that Python writes: 32 bits, of which the upper half is kept.
int32_t sixteen_bits(float sample) {
    if (sample >= 1) return 0x7FFF;
    return int32_t(std::lrint(std::max(sample, -1.0f) * 2147483648.0f)) >> 16;
}

// Its header counts with 32 bits.
constexpr uint64_t longest = UINT32_MAX - 36;

// The 44 bytes of a plain wav file, one channel of 16 bits.
std::string wav_header(int rate, uint32_t bytes) {
    std::string out = "RIFF";
    append(out, 36 + bytes, 4);
    out += "WAVEfmt ";
    append(out, 16, 4);
    append(out, 1, 2);
    append(out, 1, 2);
    append(out, uint32_t(rate), 4);
    append(out, uint32_t(rate) * 2, 4);
    append(out, 2, 2);
    append(out, 16, 2);
    out += "data";
    append(out, bytes, 4);
    return out;
}

}  // namespace

SoundReader::SoundReader(const std::string& path, int rate) : name_(path == "-" ? "standard input" : path) {
    if (path == "-") {
        file_ = stdin;
        return;
    }
    std::error_code error;
    if (!fs::exists(path, error)) wrong("the audio file " + path + " does not exist");
    if (fs::is_directory(path, error)) wrong(path + " is a folder; expected an audio file");
    owned_.reset(std::fopen(path.c_str(), "rb"));
    file_ = owned_.get();
    if (!file_) wrong(path + " cannot be read: " + std::strerror(errno));
    read_header(rate);
}

size_t SoundReader::read(char* to, size_t bytes) {
    size_t count = std::fread(to, 1, bytes, file_);
    // A signal ends what is read: whoever reads asks whether there was one.
    if (count < bytes && std::ferror(file_) && errno != EINTR) wrong(name_ + " cannot be read: " + std::strerror(errno));
    return count;
}

void SoundReader::read_header(int rate) {
    const std::string convert = "; make one with: ffmpeg -i " + name_ + " -ac 1 -ar " + std::to_string(rate) + " out.wav";
    unsigned char head[12];
    if (read(reinterpret_cast<char*>(head), 12) != 12 || std::memcmp(head, "RIFF", 4) || std::memcmp(head + 8, "WAVE", 4))
        wrong(name_ + " is no wav file" + convert);
    bool described = false;
    for (;;) {
        unsigned char chunk[8];
        if (read(reinterpret_cast<char*>(chunk), 8) != 8) wrong(name_ + " is cut short: it has no sound" + convert);
        uint32_t size = little_endian(chunk + 4, 4);
        if (!std::memcmp(chunk, "data", 4)) {
            if (!described) wrong(name_ + " does not say what its sound is" + convert);
            left_ = size;
            return;
        }
        std::vector<unsigned char> body(std::min<uint32_t>(size, 64));
        size_t skipped = size - body.size() + size % 2;
        if (read(reinterpret_cast<char*>(body.data()), body.size()) != body.size()) wrong(name_ + " is cut short" + convert);
        for (char c; skipped > 0; --skipped)
            if (read(&c, 1) != 1) wrong(name_ + " is cut short" + convert);
        if (std::memcmp(chunk, "fmt ", 4) || body.size() < 16) continue;
        uint32_t kind = little_endian(&body[0], 2), found = little_endian(&body[4], 4), bits = little_endian(&body[14], 2);
        if (kind == 0xFFFE && body.size() >= 26) kind = little_endian(&body[24], 2);
        channels_ = int(little_endian(&body[2], 2));
        is_float_ = kind == 3;
        bytes_ = int(bits / 8);
        bool known = (kind == 1 && (bits == 16 || bits == 24 || bits == 32)) || (kind == 3 && bits == 32);
        if (!known || channels_ < 1 || channels_ > 64) wrong(name_ + " is a wav file of a kind that moshi-cli does not read" + convert);
        if (found != uint32_t(rate)) wrong(name_ + " has " + std::to_string(found) + " samples a second, the model hears " + std::to_string(rate) + convert);
        described = true;
    }
}

float SoundReader::sample(const unsigned char* at) const {
    uint32_t raw = little_endian(at, bytes_);
    if (is_float_) {
        float value;
        std::memcpy(&value, &raw, 4);
        if (!std::isfinite(value)) wrong(name_ + " holds samples that are not numbers (NaN or infinite)");
        return value;
    }
    // The sign bit to where a 32-bit number has it.
    return float(int32_t(raw << (32 - 8 * bytes_))) / 2147483648.0f;
}

bool SoundReader::frame(std::vector<float>& out, size_t size) {
    out.assign(size, 0.0f);
    auto filled = size_t(std::min<int64_t>(before_, int64_t(size)));
    before_ -= int64_t(filled);
    if (filled < size && !ended_) {
        size_t count = read_samples(out.data() + filled, size - filled);
        filled += count;
        ended_ = filled < size;
    }
    auto more = size_t(std::min<int64_t>(after_, int64_t(size - filled)));
    after_ -= int64_t(more);
    return filled + more > 0;
}

size_t SoundReader::read_samples(float* out, size_t size) {
    const size_t step = size_t(channels_ * bytes_);
    std::vector<char> raw(std::min<uint64_t>(size * step, left_ / step * step));
    size_t count = read(raw.data(), raw.size()) / step;
    if (left_ != UINT64_MAX) left_ -= count * step;
    if (samples_ == 0 && file_ == stdin && count >= 2 && !std::memcmp(raw.data(), "RIFF", 4))
        wrong("standard input begins like a wav file; a pipe takes raw PCM: ffmpeg -i IN -f s16le -ac 1 -ar 24000 - | moshi-cli FOLDER - OUT");
    for (size_t i = 0; i < count; ++i) {
        float sum = 0;
        for (int c = 0; c < channels_; ++c) sum += sample(reinterpret_cast<unsigned char*>(&raw[i * step + size_t(c * bytes_)]));
        out[i] = sum / float(channels_);
        silent_ = silent_ && out[i] == 0;
    }
    samples_ += int64_t(count);
    return count;
}

SoundWriter::SoundWriter(const std::string& path, int rate) : name_(path == "-" ? "standard output" : path), rate_(rate) {
    if (path == "-") {
        if (isatty(STDOUT_FILENO)) wrong("raw sound is not for a terminal; pipe it into a player or a file");
        file_ = stdout;
        return;
    }
    Place place = place_for(path);
    path_ = place.path;
    if (place.is_file) part_ = path_ + "." + std::to_string(getpid()) + ".part";
    file_ = std::fopen(place.is_file ? part_.c_str() : path_.c_str(), "wb");
    if (!file_) refuse();
    if (place.is_file) put(wav_header(rate, 0));
}

SoundWriter::~SoundWriter() {
    if (file_ && file_ != stdout) std::fclose(file_);
    if (!part_.empty()) unlink(part_.c_str());
}

void SoundWriter::refuse() const { wrong(name_ + " cannot be written: " + std::strerror(errno)); }

void SoundWriter::put(const std::string& bytes) {
    if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) refuse();
}

void SoundWriter::write(const float* pcm, size_t count) {
    std::string bytes;
    for (size_t i = 0; i < count; ++i) append(bytes, uint32_t(sixteen_bits(pcm[i])), 2);
    if (!path_.empty() && bytes_ + bytes.size() > longest) wrong(name_ + " would be longer than a wav file can be (24 hours)");
    bytes_ += bytes.size();
    // The header of what cannot be gone back in says how long it is, so it waits for the end.
    if (!path_.empty() && part_.empty()) kept_ += bytes;
    else put(bytes);
    // What waits in a buffer is late.
    if (path_.empty() && std::fflush(file_)) refuse();
}

void SoundWriter::commit() {
    if (path_.empty()) return;
    if (!part_.empty() && std::fseek(file_, 0, SEEK_SET)) refuse();
    put(wav_header(rate_, uint32_t(bytes_)));
    put(kept_);
    if (std::fflush(file_) || (!part_.empty() && fsync(fileno(file_)))) refuse();
    if (std::fclose(std::exchange(file_, nullptr)) || (!part_.empty() && std::rename(part_.c_str(), path_.c_str()))) refuse();
    part_.clear();
}

// What a folder says about itself (manifest.json).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace moshi {

struct FunctionInfo {
    std::string file;
    std::vector<std::string> results;
};

struct StartInfo {
    std::string name, file;
    int64_t capacity = 0;
};

// State that grows while a conversation lasts: its slots are an axis of these arrays.
struct RingsInfo {
    std::vector<std::string> names;
    int axis = 0;
    std::vector<int64_t> capacities;
};

struct FileInfo {
    uint64_t bytes = 0;
    std::string sha256;
};

// A top-k of up to `most` can be asked for, and of `all` and more, which is none.
struct TopK {
    int32_t usual = 0, most = 0, all = 0;
};

struct SamplingInfo {
    float temp = 0, temp_text = 0;
    TopK top_k, top_k_text;
};

struct TextInfo {
    std::vector<std::string> pieces;
    std::string kinds;  // one letter a piece: n(ormal), c(ontrol), b(yte), u(nknown)
    std::vector<int32_t> silent;
};

struct TranslationInfo {
    int32_t end = 0, pad = 0;
    bool lead_in = false, without_last = false;
    double tail_seconds = 0;
};

struct TranscriptInfo {
    double delay_seconds = 0, silence_prefix_seconds = 0;
    int32_t heads = 0;
};

struct Manifest {
    std::string folder;
    std::string made_by, mlx, device;
    std::string type, source, license, precision;
    int32_t sample_rate = 0, frame_size = 0;
    double frame_rate = 0;
    int32_t stride = 1;  // positions of the codec's transformers in a frame
    int32_t codebooks = 0, card = 0, text_card = 0;
    std::vector<int32_t> delays;  // of text, then of every codebook, in frames
    int32_t delay = 0;            // the largest of them
    std::map<std::string, FunctionInfo> functions;
    std::string weights;
    std::vector<StartInfo> starts;
    std::optional<RingsInfo> rings;
    std::optional<SamplingInfo> sampling;
    std::optional<TextInfo> text;
    std::optional<TranslationInfo> translation;
    std::optional<TranscriptInfo> transcript;
    // What a saved conversation carries, and one that is taken up has to.
    std::map<std::string, std::string> conversation;
    uint64_t memory = 0;
    std::map<std::string, FileInfo> files;

    std::string path(const std::string& file) const { return folder + "/" + file; }
};

// The manifest of a folder, every number in its range and every file as long as it says. Throws Error.
Manifest read_manifest(const std::string& folder);

// Throws Error unless `file` has its checksum.
void check_sum(const Manifest& manifest, const std::string& file);

}  // namespace moshi

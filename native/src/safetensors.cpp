#include "safetensors.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "error.h"
#include "json.h"

namespace moshi {

namespace {

constexpr uint64_t longest_header = 100'000'000;  // as the format says

int item_bytes(const std::string& dtype) {
    static const std::map<std::string, int> sizes{{"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I64", 8}, {"I32", 4}, {"I16", 2},
                                                  {"I8", 1},  {"U64", 8}, {"U32", 4},  {"U16", 2}, {"U8", 1},  {"BOOL", 1}};
    auto found = sizes.find(dtype);
    if (found == sizes.end()) fail("the type ", dtype, " is unknown");
    return found->second;
}

struct Place {
    uint64_t start, stop;
};

Place read_tensor(const Json& entry, TensorInfo& info) {
    constexpr int64_t most = int64_t(1) << 48;
    info.dtype = entry.at("dtype").text("dtype");
    uint64_t count = 1;
    for (const Json& n : entry.at("shape").list("shape")) {
        // MLX counts elements along an axis with 32 bits.
        info.shape.push_back(n.integer("shape", 0, INT32_MAX));
        count *= uint64_t(info.shape.back());
        if (count > uint64_t(most)) fail("the shape is too large");
    }
    const Json::List& offsets = entry.at("data_offsets").list("data_offsets");
    if (offsets.size() != 2) fail("'data_offsets' should be two numbers");
    Place place{uint64_t(offsets[0].integer("data_offsets", 0, most)), uint64_t(offsets[1].integer("data_offsets", 0, most))};
    info.bytes = count * uint64_t(item_bytes(info.dtype));
    if (place.stop < place.start || place.stop - place.start != info.bytes) fail("its shape takes ", info.bytes, " bytes");
    return place;
}

}  // namespace

TensorFile read_tensor_header(const std::string& path) {
    std::error_code error;
    uint64_t size = std::filesystem::file_size(path, error);
    std::ifstream in(path, std::ios::binary);
    if (error || !in) fail(path, " cannot be read");
    uint8_t start[8] = {};
    in.read(reinterpret_cast<char*>(start), 8);
    uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | start[i];
    if (size < 8 || length > std::min(size - 8, longest_header)) fail(path, " is cut short or no safetensors file");
    std::string text(length, '\0');
    if (!in.read(text.data(), std::streamsize(length))) fail(path, " cannot be read");

    TensorFile file;
    std::vector<std::pair<Place, std::string>> places;
    try {
        const Json header = Json::parse(text);
        for (const auto& [name, entry] : header.object("header")) {
            if (name == "__metadata__") {
                if (entry.is_null()) continue;
                for (const auto& [key, value] : entry.object(name)) file.metadata[key] = value.text(key);
                continue;
            }
            places.emplace_back(read_tensor(entry, file.tensors[name]), name);
        }
    } catch (const Error& e) {
        fail(path, " has a damaged header: ", e.what());
    }
    std::sort(places.begin(), places.end(), [](const auto& a, const auto& b) {
        return std::pair(a.first.start, a.first.stop) < std::pair(b.first.start, b.first.stop);
    });
    uint64_t end = 0;
    for (const auto& [place, name] : places) {
        if (place.start != end) fail(path, " has a damaged header: ", name, " does not follow the tensor before it");
        end = place.stop;
    }
    if (8 + length + end != size) fail(path, " has ", size, " bytes, its header speaks of ", 8 + length + end);
    return file;
}

}  // namespace moshi

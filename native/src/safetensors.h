// Headers of safetensors files, checked before MLX reads the file: its reader believes what they say.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace moshi {

struct TensorInfo {
    std::string dtype;  // F32, I32, ...
    std::vector<int64_t> shape;
    uint64_t bytes;
};

struct TensorFile {
    std::map<std::string, TensorInfo> tensors;
    std::map<std::string, std::string> metadata;
};

// Throws Error unless the tensors lie in the file one after the other and fill it.
TensorFile read_tensor_header(const std::string& path);

}  // namespace moshi

// What moshi-cli was asked for.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

struct Arguments {
    std::string folder, input, output;  // "-": raw PCM through a pipe; an empty output: none
    bool live = false, json = false, greedy = false, help = false;
    std::optional<float> temp, text_temp;
    std::optional<int32_t> top_k, text_top_k;
    uint32_t seed = 299792458;
    std::optional<double> tail;
    std::string save, restore, voice;
};

// A command line that makes no sense.
struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

Arguments parse_arguments(int count, char** values);
std::string usage();

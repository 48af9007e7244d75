// What moshi-cli says of a conversation when it is over.
#pragma once

#include <string>
#include <vector>

struct SpokenWord {
    std::string text;
    double start, end;  // -1: not marked
};

struct Outcome {
    std::string input, output, text;
    std::vector<SpokenWord> words;
    double duration = 0;
    bool is_translation = false, complete = false;
    std::vector<double> milliseconds;  // of every step
};

// Figures as JSON on standard output, or a line of them on standard error.
void report(const Outcome& outcome, double frame_seconds, bool json);

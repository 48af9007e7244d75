#include "report.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace {

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (char c : text) {
        char escaped[8];
        std::snprintf(escaped, sizeof escaped, "\\u%04x", unsigned(static_cast<unsigned char>(c)));
        if (c == '"' || c == '\\') out.append("\\").push_back(c);
        else if (static_cast<unsigned char>(c) < 0x20) out += escaped;
        else out += c;
    }
    return out + "\"";
}

std::string number(double value, int digits) {
    char text[64];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return text;
}

// Between the two nearest values, as numpy does it.
double percentile(std::vector<double> values, double percent) {
    std::sort(values.begin(), values.end());
    double at = percent / 100 * double(values.size() - 1);
    auto low = size_t(at), high = std::min(low + 1, values.size() - 1);
    return values[low] + (at - double(low)) * (values[high] - values[low]);
}

// Resident memory at its largest, in bytes.
double peak_memory() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return double(usage.ru_maxrss);
#else
    return double(usage.ru_maxrss) * 1024;
#endif
}

}  // namespace

void report(const Outcome& outcome, double frame_seconds, bool json) {
    // The first step does what is done once.
    std::vector<double> times = outcome.milliseconds;
    if (times.size() > 1) times.erase(times.begin());
    double total = 0;
    for (double t : times) total += t;
    std::string p50 = number(percentile(times, 50), 2), p95 = number(percentile(times, 95), 2);
    std::string factor = number(total / double(times.size()) / 1000 / frame_seconds, 3), memory = number(peak_memory() / 1e9, 3);
    if (!json) {
        std::fprintf(stderr, "%zu steps, %s ms per step (p95 %s), real-time factor %s, peak memory %s GB\n", outcome.milliseconds.size(), p50.c_str(),
                     p95.c_str(), factor.c_str(), memory.c_str());
        if (!outcome.output.empty() && outcome.output != "-") std::fprintf(stderr, "wrote %s\n", outcome.output.c_str());
        return;
    }
    std::string words;
    for (const SpokenWord& word : outcome.words) {
        words += words.empty() ? "\n" : ",\n";
        words += "    {\"word\": " + quoted(word.text) + ", \"start\": " + number(word.start, 3) + ", \"end\": " + (word.end < 0 ? "null" : number(word.end, 3)) + "}";
    }
    std::printf("{\n \"replies\": [\n  {\n   \"input\": %s,\n   \"output\": %s,\n   \"text\": %s,\n   \"words\": [%s],\n   \"duration\": %s%s\n  }\n ],\n",
                quoted(outcome.input).c_str(), outcome.output.empty() ? "null" : quoted(outcome.output).c_str(), quoted(outcome.text).c_str(), words.c_str(),
                number(outcome.duration, 3).c_str(), outcome.is_translation ? outcome.complete ? ",\n   \"complete\": true" : ",\n   \"complete\": false" : "");
    std::printf(" \"steps\": %zu,\n \"ms_per_step_p50\": %s,\n \"ms_per_step_p95\": %s,\n \"real_time_factor\": %s,\n \"peak_memory_gb\": %s\n}\n",
                outcome.milliseconds.size(), p50.c_str(), p95.c_str(), factor.c_str(), memory.c_str());
}

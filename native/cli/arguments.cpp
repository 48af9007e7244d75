#include "arguments.h"

#include <cmath>
#include <cstdlib>
#include <vector>

#include "places.h"

namespace {

double number(const std::string& flag, const std::string& text) {
    char* end = nullptr;
    double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end || !std::isfinite(value)) throw UsageError(flag + " takes a number, found '" + text + "'");
    return value;
}

double at_least_0(const std::string& flag, const std::string& text) {
    double value = number(flag, text);
    if (value < 0) throw UsageError(flag + " should be 0 or more, found " + text);
    return value;
}

// A day of silence is more than anybody waits for.
double tail(const std::string& flag, const std::string& text) {
    constexpr double longest = 86400;
    double value = at_least_0(flag, text);
    if (value > longest) throw UsageError(flag + " should be 0 to 86400 seconds, found " + text);
    return value;
}

int64_t whole(const std::string& flag, const std::string& text, int64_t most) {
    double value = at_least_0(flag, text);
    if (value != std::floor(value) || value > double(most)) throw UsageError(flag + " takes a whole number, found '" + text + "'");
    return int64_t(value);
}

// Known before any work is done.
void check_save(const std::string& path) {
    if (!path.ends_with(".safetensors")) throw UsageError(path + " should end in .safetensors");
    if (!place_for(path).is_file) throw UsageError(path + " is no regular file; expected the name of one to save to");
}

}  // namespace

Arguments parse_arguments(int count, char** values) {
    Arguments out;
    std::vector<std::string> names;
    for (int i = 1; i < count; ++i) {
        std::string flag = values[i];
        auto value = [&]() -> std::string {
            if (i + 1 >= count) throw UsageError(flag + " lacks its value");
            return values[++i];
        };
        auto top_k = [&] { return int32_t(whole(flag, value(), INT32_MAX)); };
        if (flag == "-h" || flag == "--help") out.help = true;
        else if (flag == "--live") out.live = true;
        else if (flag == "--json") out.json = true;
        else if (flag == "--greedy") out.greedy = true;
        else if (flag == "--temp") out.temp = float(at_least_0(flag, value()));
        else if (flag == "--text-temp") out.text_temp = float(at_least_0(flag, value()));
        else if (flag == "--top-k") out.top_k = top_k();
        else if (flag == "--text-top-k") out.text_top_k = top_k();
        else if (flag == "--seed") out.seed = uint32_t(whole(flag, value(), UINT32_MAX));
        else if (flag == "--tail") out.tail = tail(flag, value());
        else if (flag == "--save") out.save = value();
        else if (flag == "--restore") out.restore = value();
        else if (flag == "--voice") out.voice = value();
        else if (flag.size() > 1 && flag[0] == '-') throw UsageError("unknown option " + flag);
        else names.push_back(flag);
    }
    if (out.help) return out;
    size_t most = out.live ? 1 : 3, least = out.live ? 1 : 2;
    if (names.size() < least || names.size() > most) throw UsageError(out.live ? "expected FOLDER --live" : "expected FOLDER IN [OUT]");
    out.folder = names[0];
    if (names.size() > 1) out.input = names[1];
    if (names.size() > 2) out.output = names[2];
    for (const std::string* other : {&out.input, &out.restore, &out.save})
        if (!other->empty() && !out.output.empty() && *other != "-" && out.output != "-" && same_file(*other, out.output))
            throw UsageError(out.output + " is named twice; give the reply a file of its own");
    if (!out.save.empty()) check_save(out.save);
    if (out.json && out.output == "-") throw UsageError("--json and the sound cannot both go to standard output; name a file for the reply");
    return out;
}

std::string usage() {
    return R"(usage: moshi-cli FOLDER IN [OUT] [options]
       moshi-cli FOLDER --live [options]

A recording in, the model's reply as sound and text out. FOLDER was written by python -m moshi_mlx.export.
IN and OUT are wav files at the model's rate, 24000 Hz; "-" is raw PCM through a pipe: 16 bits, little-endian, one channel.

  --greedy           always take the most probable token
  --temp X           temperature of audio, and of text unless --text-temp is given (default: the checkpoint's)
  --text-temp X      temperature of text
  --top-k N          audio tokens to choose from, 0 for all
  --text-top-k N     text tokens to choose from, 0 for all
  --seed N           seed of the random draws (default: 299792458)
  --voice NAME       which of the folder's voices speaks (PersonaPlex)
  --tail SECONDS     listen to silence after the input (default: 0; for a translation, at most 30 until the model ends it)
  --json             print the text, words with times and figures as JSON instead of live text
  --save FILE        write the conversation to FILE.safetensors when the input is over
  --restore FILE     go on with a saved conversation
  --live             talk by microphone and loudspeaker, where moshi-cli was built with PortAudio; Ctrl-C ends it
)";
}

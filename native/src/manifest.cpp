#include "manifest.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "error.h"
#include "json.h"
#include "sha256.h"

namespace moshi {

namespace {

namespace fs = std::filesystem;

constexpr int format = 1;
constexpr uintmax_t longest_manifest = 64 << 20;
constexpr int64_t most_bytes = int64_t(1) << 50;

// A name that stays in its folder.
std::string plain(const std::string& name) {
    bool odd = name.empty() || name.front() == '.' || name.find_first_of("/\\:") != std::string::npos ||
               std::any_of(name.begin(), name.end(), [](char c) { return uint8_t(c) < 0x20; });
    if (odd) fail("the file name '", name, "' does not stay in the folder");
    return name;
}

std::vector<std::string> texts(const Json& list, std::string_view name) {
    std::vector<std::string> out;
    for (const Json& item : list.list(name)) out.push_back(item.text(name));
    return out;
}

TopK top_k(const Json& sampling, std::string_view name) {
    const Json& limit = sampling.at("limits").at(name);
    return {int32_t(sampling.at(name).integer(name, 0, INT32_MAX)), int32_t(limit.at("most").integer("most", 1, INT32_MAX)),
            int32_t(limit.at("all").integer("all", 1, INT32_MAX))};
}

float temperature(const Json& sampling, std::string_view name) {
    double value = sampling.at(name).number(name);
    if (value < 0 || value > 1e6) fail("'", name, "' should be a temperature, found ", value);
    return float(value);
}

TextInfo text(const Json& described) {
    TextInfo out{texts(described.at("pieces"), "pieces"), described.at("kinds").text("kinds"), {}};
    if (out.kinds.size() != out.pieces.size() || out.kinds.find_first_not_of("ncbu") != std::string::npos)
        fail("'kinds' should be one of the letters n, c, b and u for each of ", out.pieces.size(), " pieces");
    for (size_t i = 0; i < out.pieces.size(); ++i) {
        const std::string& piece = out.pieces[i];
        bool is_byte = piece.size() == 6 && piece.starts_with("<0x") && piece.ends_with(">") &&
                       piece.find_first_not_of("0123456789ABCDEFabcdef", 3) == 5;
        if (out.kinds[i] == 'b' && !is_byte) fail("the piece '", piece, "' is no byte");
    }
    for (const Json& token : described.at("silent").list("silent")) out.silent.push_back(int32_t(token.integer("silent", 0, INT32_MAX)));
    return out;
}

RingsInfo rings(const Json& described) {
    RingsInfo out{texts(described.at("names"), "names"), int(described.at("axis").integer("axis", 0, 7)), {}};
    for (const Json& size : described.at("capacities").list("capacities")) {
        out.capacities.push_back(size.integer("capacities", 1, 1 << 24));
        size_t n = out.capacities.size();
        if (n > 1 && out.capacities[n - 2] >= out.capacities[n - 1]) fail("'capacities' should grow");
    }
    if (out.names.empty() || out.capacities.empty()) fail("'rings' should name arrays and their sizes");
    return out;
}

void read_model(Manifest& m, const Json& json) {
    const Json& model = json.at("model");
    m.type = model.at("type").text("type");
    m.source = model.at("source").text("source");
    m.precision = model.at("precision").text("precision");
    if (const Json* license = model.find("license")) m.license = license->text("license");
    const Json &audio = json.at("audio"), &tokens = json.at("tokens");
    m.sample_rate = int32_t(audio.at("sample_rate").integer("sample_rate", 1, 1 << 20));
    m.frame_size = int32_t(audio.at("frame_size").integer("frame_size", 1, 1 << 20));
    m.frame_rate = audio.at("frame_rate").number("frame_rate");
    if (!(m.frame_rate > 0.01 && m.frame_rate < 1e5)) fail("'frame_rate' should be frames a second, found ", m.frame_rate);
    m.codebooks = int32_t(tokens.at("codebooks").integer("codebooks", 0, 1024));
    m.card = int32_t(tokens.at("card").integer("card", 1, 1 << 24));
    m.text_card = int32_t(tokens.at("text_card").integer("text_card", 0, 1 << 24));
    for (const Json& delay : tokens.at("delays").list("delays")) m.delays.push_back(int32_t(delay.integer("delays", 0, 1 << 16)));
    for (int32_t delay : m.delays) m.delay = std::max(m.delay, delay);
    m.stride = int32_t(audio.at("stride").integer("stride", 1, 1 << 16));
    if (const Json* s = json.find("sampling"))
        m.sampling = SamplingInfo{temperature(*s, "temp"), temperature(*s, "temp_text"), top_k(*s, "top_k"), top_k(*s, "top_k_text")};
    if (const Json* described = json.find("text")) m.text = text(*described);
    if (const Json* t = json.find("translation"))
        m.translation = TranslationInfo{int32_t(t->at("end").integer("end", 0, INT32_MAX)), int32_t(t->at("pad").integer("pad", 0, INT32_MAX)),
                                        t->at("lead_in").boolean("lead_in"), t->at("without_last").boolean("without_last"),
                                        t->at("tail_seconds").number("tail_seconds")};
    if (const Json* t = json.find("transcript"))
        m.transcript = TranscriptInfo{t->at("delay_seconds").number("delay_seconds"),
                                      t->at("silence_prefix_seconds").number("silence_prefix_seconds"),
                                      int32_t(t->at("heads").integer("heads", 0, 1024))};
}

void read_files(Manifest& m, const Json& json) {
    for (const auto& [name, file] : json.at("files").object("files"))
        m.files[plain(name)] = {uint64_t(file.at("bytes").integer("bytes", 0, most_bytes)), file.at("sha256").text("sha256")};
    for (const auto& [name, function] : json.at("functions").object("functions"))
        m.functions[name] = {plain(function.at("file").text("file")), texts(function.at("results"), "results")};
    m.weights = plain(json.at("weights").text("weights"));
    for (const Json& start : json.at("starts").list("starts"))
        m.starts.push_back({start.at("name").text("name"), plain(start.at("file").text("file")), start.at("capacity").integer("capacity", 0, 1 << 24)});
    if (m.starts.empty()) fail("'starts' should have one at least");
    if (const Json* described = json.find("rings")) m.rings = rings(*described);
    for (const auto& [key, value] : json.at("conversation").object("conversation")) m.conversation[key] = value.text(key);
    const Json& memory = json.at("memory");
    m.memory = uint64_t(memory.at("weights").integer("weights", 0, most_bytes)) + uint64_t(memory.at("state").integer("state", 0, most_bytes));

    std::vector<std::string> used{m.weights};
    for (const auto& [_, function] : m.functions) used.push_back(function.file);
    for (const StartInfo& start : m.starts) used.push_back(start.file);
    for (const std::string& name : used)
        if (!m.files.contains(name)) fail("'files' lacks ", name);
}

void check_sizes(const Manifest& m) {
    for (const auto& [name, file] : m.files) {
        std::error_code error;
        if (!fs::is_regular_file(m.path(name), error)) fail(m.path(name), " is missing; export the model anew");
        uintmax_t size = fs::file_size(m.path(name), error);
        if (error || size != file.bytes)
            fail(m.path(name), " should have ", file.bytes, " bytes, found ", size, ": it was cut short or changed; export the model anew");
    }
}

}  // namespace

Manifest read_manifest(const std::string& folder) {
    Manifest m;
    m.folder = folder;
    std::string path = m.path("manifest.json");
    std::error_code error;
    if (!fs::is_directory(folder, error)) fail(folder, " is not a folder; expected one that python -m moshi_mlx.export wrote");
    uintmax_t size = fs::is_regular_file(path, error) ? fs::file_size(path, error) : 0;
    std::ifstream in(path, std::ios::binary);
    if (error || size == 0 || !in) fail(folder, " has no manifest.json; expected a folder that python -m moshi_mlx.export wrote");
    if (size > longest_manifest) fail(path, " is longer than a manifest can be");
    std::stringstream content;
    content << in.rdbuf();
    try {
        const Json json = Json::parse(content.str());
        int64_t found = json.at("format").integer("format", 0, INT32_MAX);
        if (found != format) fail("the format is ", found, ", this library reads ", format, "; export the model anew");
        m.made_by = json.at("moshi_mlx").text("moshi_mlx");
        m.mlx = json.at("mlx").text("mlx");
        m.device = json.at("device").text("device");
        read_model(m, json);
        read_files(m, json);
    } catch (const Error& e) {
        fail(path, ": ", e.what());
    }
    check_sizes(m);
    return m;
}

void check_sum(const Manifest& m, const std::string& file) {
    if (sha256_of(m.path(file)) != m.files.at(file).sha256)
        fail(m.path(file), " is damaged: its checksum is not the manifest's; copy it again or export the model anew");
}

}  // namespace moshi

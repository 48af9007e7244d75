// The parts of the library that need no model.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "check.h"
#include "json.h"
#include "safetensors.h"
#include "sha256.h"
#include "text.h"
#include "utf8.h"
#include "worker.h"

using namespace moshi;

namespace {

void test_json() {
    Json json = Json::parse(R"( {"a": [1, -2.5e3, true, null], "b": {"c": "\u00e9\ud83d\ude00\n\"x\""}, "n": null} )");
    CHECK(json.at("a").list("a").size() == 4);
    CHECK(json.at("a").list("a")[1].number("") == -2500);
    CHECK(json.at("a").list("a")[2].boolean(""));
    CHECK(json.at("b").at("c").text("") == "\xC3\xA9\xF0\x9F\x98\x80\n\"x\"");
    CHECK(!json.find("n") && !json.find("nothing"));
    CHECK(json.at("a").list("a")[0].integer("", 1, 1) == 1);
    CHECK(thrown([&] { json.at("a").list("a")[0].integer("one", 2, 9); }).find("'one' should be a whole number from 2 to 9") == 0);
    CHECK(thrown([&] { json.at("z"); }) == "'z' is missing");
    CHECK(thrown([&] { json.at("a").text("a"); }) == "'a' should be a text");
    for (const char* bad : {"", "{", "[1,]", "{\"a\":1,}", "01", "1.", "+1", "nul", "\"", "\"\\x\"", "\"\\ud800\\u0041\"", "[1] 2", "{\"a\":1,\"a\":2}", "1e999", "\"\t\"",
                            "\"\xC3\"", "\"\xED\xA0\x80\"", "--1", "{1:2}", "[1 2]", "NaN", "Infinity"})
        CHECK(!thrown([&] { Json::parse(bad); }).empty());
    CHECK(!thrown([] { Json::parse(std::string(100, '[')); }).empty());
    // Whatever bytes come, there is a value or a sentence.
    std::mt19937 random(1);
    const std::string good = R"({"key": [1.5, "text\u0041", {"x": false}], "other": -3e-2})";
    for (int i = 0; i < 20000; ++i) {
        std::string bad = good;
        for (int n = 1 + int(random() % 3); n > 0; --n) bad[random() % bad.size()] = char(random());
        if (random() % 4 == 0) bad.resize(random() % bad.size());
        thrown([&] { Json::parse(bad); });
    }
}

void test_sha256() {
    auto of = [](std::string_view text) {
        Sha256 sha;
        sha.feed(text);
        return sha.digest();
    };
    CHECK(of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(of(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    // In pieces of any length.
    std::string text(1000, 'x');
    for (size_t piece : {1, 63, 64, 65, 127, 999}) {
        Sha256 sha;
        for (size_t at = 0; at < text.size(); at += piece) sha.feed(std::string_view(text).substr(at, piece));
        CHECK(sha.digest() == of(text));
    }
}

void test_utf8() {
    CHECK(is_utf8("a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xEF\xBF\xBD"));
    for (const char* bad : {"\x80", "\xC3", "\xC0\xAF", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xF8\x88", "a\xE2\x82"}) CHECK(!is_utf8(bad));
    // One replacement for each longest beginning of a character.
    Utf8Decoder decoder;
    std::string out;
    for (char c : std::string("\xE2\x82" "A\xF0\x9F\xC3\xA9\xED\xA0")) out += decoder.feed(uint8_t(c));
    out += decoder.flush();
    std::string r(replacement);
    CHECK(out == r + "A" + r + "\xC3\xA9" + r + r);
    CHECK(decoder.resume("\xE2\x82") && decoder.pending() == "\xE2\x82" && decoder.feed(0xAC) == "\xE2\x82\xAC");
    CHECK(!decoder.resume("A") && !decoder.resume("\x80") && decoder.resume(""));
}

const TextInfo table{{"<unk>", "<s>", "</s>", "<pad>", "\u2581hello", "\u2581wor", "ld", "<0xC3>", "<0xA9>", "\u2581", "a\x01\u2581z"}, "uccncnnbbnn", {0, 3}};

void test_text() {
    TextInfo pieces = table;
    pieces.kinds = "uccnnnnbbnn";
    Detokenizer text(pieces);
    std::string out;
    for (int32_t token : {3, 4, 0, 5, 6, 7, 8, 2, 7, 4, -2, 99, 10}) out += text.feed(token);
    CHECK(out == " hello world\xC3\xA9" + std::string(replacement) + " helloa z");
    CHECK(text.flush().empty());
    text.feed(7);
    CHECK(text.pending() == "\xC3");
    Detokenizer other(pieces);
    CHECK(other.resume(text.pending()) && other.feed(8) == "\xC3\xA9");
    CHECK(spell(pieces, {4, 5, 6}) == "hello world");
    CHECK(spell(pieces, {0}) == "\u2047");
    CHECK(spell(pieces, {}).empty());
    // Nothing that a terminal would obey: a tab, a line end, an escape, NEL, a line separator, a change of direction.
    pieces.pieces[4] = "a\tb\nc\x1b[1m\xC2\x85" "d\u2028\u202E\u2066" "e\u2065\u20A8";
    CHECK(Detokenizer(pieces).feed(4) == "ab\nc[1mde\u2065\u20A8");
    CHECK(spell(pieces, {4}) == "a b c[1mde\u2065\u20A8");

    pieces.pieces = table.pieces;
    std::deque<Word> words;
    WordTimer timer(12.5);
    timer.feed(" hello", 3, words);
    timer.feed("", 4, words);
    timer.feed(" wor", 5, words);
    timer.feed("ld", 6, words);
    CHECK(words.size() == 1 && words[0].text == "hello" && words[0].start == 3 / 12.5 && words[0].end == 4 / 12.5);
    timer.flush(words);
    CHECK(words.size() == 2 && words[1].text == "world" && words[1].end == 7 / 12.5);

    words.clear();
    WordStream stream(pieces, 12.5, 0.16);
    for (int32_t token : {3, 3, 0, 4, 3, 3, 0, 5, 6, 3}) stream.feed(token, words);
    // Steps count from 1 and lag two behind: the boundaries of steps 3 and 7 lie at 1 and 5.
    CHECK(words.size() == 1 && words[0].text == "hello" && words[0].start == 1 / 12.5 && words[0].end == 5 / 12.5);
    stream.flush(words);
    CHECK(words.size() == 2 && words[1].text == "world" && words[1].start == 5 / 12.5 && words[1].end == -1);
}

void test_safetensors() {
    std::string path = std::filesystem::temp_directory_path() / ("moshi-units-" + std::to_string(getpid()));
    auto write = [&](const std::string& header, size_t bytes) {
        std::ofstream out(path, std::ios::binary);
        for (int i = 0; i < 8; ++i) out.put(char(header.size() >> (8 * i)));
        out << header << std::string(bytes, 'x');
    };
    write(R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}})", 9);
    TensorFile file = read_tensor_header(path);
    CHECK(file.metadata["k"] == "v" && file.tensors.size() == 2 && file.tensors["a"].bytes == 8);
    for (const char* bad : {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}})", R"({"a":{"dtype":"F33","shape":[9],"data_offsets":[0,9]}})",
                            R"({"a":{"dtype":"U8","shape":[9],"data_offsets":[1,10]}})", R"({"a":{"dtype":"U8","shape":[-9],"data_offsets":[0,9]}})", R"([])", "x",
                            R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})"}) {
        write(bad, 9);
        CHECK(!thrown([&] { read_tensor_header(path); }).empty());
    }
    std::filesystem::remove(path);
    CHECK(!thrown([&] { read_tensor_header(path); }).empty());
}

void test_worker() {
    int done = 0;
    const char* chosen = std::getenv("MLX_ENABLE_TF32");
    const std::string expected = chosen ? chosen : "0";
    Worker::instance().run([&] {
        ++done;
        // A callback that calls the library again runs at once.
        Worker::instance().run([&] { ++done; });
    });
    CHECK(done == 2);
    CHECK(std::getenv("MLX_ENABLE_TF32") == expected);
    CHECK(thrown([] { Worker::instance().run([] { throw std::runtime_error("words"); }); }) == "words");
    std::vector<std::thread> threads;
    for (int i = 0; i < 10; ++i)
        threads.emplace_back([&] {
            for (int n = 0; n < 1000; ++n) Worker::instance().run([&] { ++done; });
        });
    for (auto& thread : threads) thread.join();
    CHECK(done == 10002);
}

}  // namespace

int main() {
    test_json();
    test_sha256();
    test_utf8();
    test_text();
    test_safetensors();
    test_worker();
    std::puts("ok");
}

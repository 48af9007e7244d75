#include "json.h"

#include <cmath>
#include <locale>
#include <sstream>

#include "error.h"
#include "utf8.h"

namespace moshi {

namespace {
constexpr int deepest = 32;
}

class JsonParser {
   public:
    explicit JsonParser(std::string_view text) : text_(text) {}

    Json document() {
        Json value = parse(0);
        skip_space();
        if (at_ != text_.size()) wrong("the end");
        return value;
    }

   private:
    std::string_view text_;
    size_t at_ = 0;

    [[noreturn]] void wrong(std::string_view expected) const { fail("expected ", expected, " at byte ", at_); }

    void skip_space() {
        while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
    }

    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

    bool take(char c) {
        if (peek() != c || at_ >= text_.size()) return false;
        ++at_;
        return true;
    }

    bool take(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Json parse(int depth) {
        if (depth > deepest) wrong("no more than 32 brackets in one another");
        Json out;
        skip_space();
        switch (peek()) {
            case '{':
                out.value_ = object(depth);
                break;
            case '[':
                out.value_ = list(depth);
                break;
            case '"':
                out.value_ = string();
                break;
            default:
                if (take("null")) break;
                if (take("true")) out.value_ = true;
                else if (take("false")) out.value_ = false;
                else out.value_ = number();
        }
        return out;
    }

    Json::Object object(int depth) {
        Json::Object out;
        ++at_;
        skip_space();
        if (take('}')) return out;
        do {
            skip_space();
            if (peek() != '"') wrong("a name");
            std::string key = string();
            skip_space();
            if (!take(':')) wrong("':'");
            if (!out.emplace(key, parse(depth + 1)).second) fail("the name '", key, "' is there twice");
            skip_space();
        } while (take(','));
        if (!take('}')) wrong("',' or '}'");
        return out;
    }

    Json::List list(int depth) {
        Json::List out;
        ++at_;
        skip_space();
        if (take(']')) return out;
        do {
            out.push_back(parse(depth + 1));
            skip_space();
        } while (take(','));
        if (!take(']')) wrong("',' or ']'");
        return out;
    }

    uint32_t hex() {
        uint32_t code = 0;
        for (int i = 0; i < 4; ++i) {
            char c = peek();
            int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
            if (digit < 0) wrong("four hexadecimal digits");
            code = code * 16 + uint32_t(digit);
            ++at_;
        }
        return code;
    }

    void escape(std::string& out) {
        static constexpr std::string_view letters = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
        if (take('u')) {
            uint32_t code = hex();
            // A character beyond 16 bits comes as two halves.
            if (code >= 0xD800 && code < 0xDC00 && take("\\u")) {
                uint32_t low = hex();
                if (low < 0xDC00 || low > 0xDFFF) wrong("the second half of a character");
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
            }
            return append_utf8(out, code);
        }
        size_t which = at_ < text_.size() ? letters.find(peek()) : std::string_view::npos;
        if (which == std::string_view::npos) wrong("a character that can be escaped");
        out += meant[which];
        ++at_;
    }

    std::string string() {
        std::string out;
        ++at_;
        while (!take('"')) {
            if (at_ >= text_.size() || uint8_t(peek()) < 0x20) wrong("'\"'");
            if (take('\\')) escape(out);
            else out += text_[at_++];
        }
        if (!is_utf8(out)) wrong("text in UTF-8 before this");
        return out;
    }

    void digits() {
        if (peek() < '0' || peek() > '9') wrong("a digit");
        while (peek() >= '0' && peek() <= '9') ++at_;
    }

    double number() {
        size_t start = at_;
        take('-');
        if (peek() == '0') ++at_;
        else if (peek() >= '1' && peek() <= '9') digits();
        else wrong("a value");
        if (take('.')) digits();
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            digits();
        }
        std::istringstream in{std::string(text_.substr(start, at_ - start))};
        in.imbue(std::locale::classic());
        double value = 0;
        in >> value;
        if (in.fail() || !std::isfinite(value)) fail("a number that can be held before byte ", at_);
        return value;
    }
};

Json Json::parse(std::string_view text) { return JsonParser(text).document(); }

namespace {
template <class T, class Variant>
const T& get(const Variant& value, std::string_view name, std::string_view kind) {
    if (const T* found = std::get_if<T>(&value)) return *found;
    fail("'", name, "' should be ", kind);
}
}  // namespace

const Json::Object& Json::object(std::string_view name) const { return get<Object>(value_, name, "an object"); }
const Json::List& Json::list(std::string_view name) const { return get<List>(value_, name, "a list"); }
const std::string& Json::text(std::string_view name) const { return get<std::string>(value_, name, "a text"); }
double Json::number(std::string_view name) const { return get<double>(value_, name, "a number"); }
bool Json::boolean(std::string_view name) const { return get<bool>(value_, name, "true or false"); }

int64_t Json::integer(std::string_view name, int64_t low, int64_t high) const {
    double value = number(name);
    if (value != std::floor(value) || value < double(low) || value > double(high))
        fail("'", name, "' should be a whole number from ", low, " to ", high, ", found ", value);
    return int64_t(value);
}

const Json* Json::find(std::string_view key) const {
    const Object* members = std::get_if<Object>(&value_);
    if (!members) return nullptr;
    auto found = members->find(std::string(key));
    return found == members->end() || found->second.is_null() ? nullptr : &found->second;
}

const Json& Json::at(std::string_view key) const {
    if (const Json* found = find(key)) return *found;
    fail("'", key, "' is missing");
}

}  // namespace moshi

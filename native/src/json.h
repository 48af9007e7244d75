// JSON, read strictly.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace moshi {

class Json {
   public:
    using List = std::vector<Json>;
    using Object = std::map<std::string, Json>;

    Json() = default;

    // Throws Error, with the byte at which `text` stops being JSON.
    static Json parse(std::string_view text);

    bool is_null() const { return std::holds_alternative<std::monostate>(value_); }

    // The value as what it should be. `name` is how an error calls it.
    const Object& object(std::string_view name) const;
    const List& list(std::string_view name) const;
    const std::string& text(std::string_view name) const;
    double number(std::string_view name) const;
    int64_t integer(std::string_view name, int64_t low, int64_t high) const;
    bool boolean(std::string_view name) const;

    // A member of an object, which has to be there; `find` gives NULL where it is not, or is null.
    const Json& at(std::string_view key) const;
    const Json* find(std::string_view key) const;

   private:
    friend class JsonParser;
    std::variant<std::monostate, bool, double, std::string, List, Object> value_;
};

}  // namespace moshi

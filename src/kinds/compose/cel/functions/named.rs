//! Named formats, which say what is wrong with a text as the API server does. Pure.

use std::sync::LazyLock;

use regex::Regex;

use super::{
    super::value::Value,
    Asked, Entry,
    Form::{Function, Method},
    Outcome, url,
};

/// A function for each format by its name.
macro_rules! formats {
    ($($name:literal),* $(,)?) => {
        const NAMES: &[&str] = &[$($name),*];
        pub(super) const ENTRIES: &[Entry] = &[
            ("format.named", Function, 1, 1, named),
            ("validate", Method, 2, 2, validate),
            $((concat!("format.", $name), Function, 0, 0, |_| Ok(Value::Format($name)))),*
        ];
    };
}

formats!(
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
);

fn named(asked: &Asked<'_>) -> Outcome {
    let [Value::String(name)] = asked.of else { return asked.no() };
    let found = NAMES.iter().find(|known| ***known == **name);
    Ok(found.map_or(Value::Optional(None), |name| Value::some(Value::Format(name))))
}

/// A rule: the longest text, its pattern, and how the API server says it.
struct Rule {
    longest: usize,
    pattern: &'static str,
    message: &'static str,
    examples: &'static str,
}

const LABEL: Rule = Rule {
    longest: 63,
    pattern: "[a-z0-9]([-a-z0-9]*[a-z0-9])?",
    message: "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
              end with an alphanumeric character",
    examples: "e.g. 'my-name',  or '123-abc'",
};
const SUBDOMAIN: Rule = Rule {
    longest: 253,
    pattern: r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
    message: "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
              start and end with an alphanumeric character",
    examples: "e.g. 'example.com'",
};
const OLD_LABEL: Rule = Rule {
    longest: 63,
    pattern: "[a-z]([-a-z0-9]*[a-z0-9])?",
    message: "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
              character, and end with an alphanumeric character",
    examples: "e.g. 'my-name',  or 'abc-123'",
};
const KEY: Rule = Rule {
    longest: 63,
    pattern: "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]",
    message: "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
              character",
    examples: "e.g. 'MyName',  or 'my.name',  or '123-abc'",
};
const LABEL_VALUE: Rule = Rule {
    longest: 63,
    pattern: "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
    message: "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
              start and end with an alphanumeric character",
    examples: "e.g. 'MyValue',  or 'my_value',  or '12345'",
};

/// All of them, as [`Rule::is_met`] asks for them.
static PATTERNS: LazyLock<Vec<(&'static str, Option<Regex>)>> = LazyLock::new(|| {
    let rules = [LABEL, SUBDOMAIN, OLD_LABEL, KEY, LABEL_VALUE].map(|rule| rule.pattern);
    let others = [UUID, BASE64, TIME];
    rules.into_iter().chain(others).map(|pattern| (pattern, Regex::new(&format!("^(?:{pattern})$")).ok())).collect()
});

const UUID: &str = "(?i)[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}";
const BASE64: &str = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})";
const TIME: &str = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](.[0-9]+)?(z|([+-][0-9]{2}:[0-9]{2}))";

fn fits(pattern: &str, text: &str) -> bool {
    PATTERNS.iter().any(|(known, compiled)| *known == pattern && compiled.as_ref().is_some_and(|it| it.is_match(text)))
}

impl Rule {
    fn is_met(&self, text: &str) -> bool {
        fits(self.pattern, text)
    }

    fn too_long(&self) -> String {
        format!("must be no more than {} bytes", self.longest)
    }

    fn refusal(&self) -> String {
        format!("{} ({}, regex used for validation is '{}')", self.message, self.examples, self.pattern)
    }

    fn wrong(&self, text: &str) -> Vec<String> {
        let long = (text.len() > self.longest).then(|| self.too_long());
        long.into_iter().chain((!self.is_met(text)).then(|| self.refusal())).collect()
    }
}

fn label(text: &str) -> Vec<String> {
    if !LABEL.is_met(text) && SUBDOMAIN.is_met(text) {
        let long = (text.len() > LABEL.longest).then(|| LABEL.too_long());
        return long.into_iter().chain(["must not contain dots".to_owned()]).collect();
    }
    LABEL.wrong(text)
}

/// A prefix may end in a dash, for a name follows.
fn prefix(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if text.len() > 1 => {
            let mut characters = rest.chars();
            characters.next_back();
            format!("{}a", characters.as_str())
        }
        _ => text.to_owned(),
    }
}

fn qualified_name(text: &str) -> Vec<String> {
    let parts: Vec<&str> = text.split('/').collect();
    let mut wrong = Vec::new();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                wrong.push("prefix part must be non-empty".to_owned());
            } else {
                wrong.extend(SUBDOMAIN.wrong(prefix).into_iter().map(|it| format!("prefix part {it}")));
            }
            name
        }
        _ => {
            let key = KEY.refusal();
            return vec![format!(
                "a valid label key {key} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > KEY.longest {
        wrong.push(format!("name part {}", KEY.too_long()));
    }
    if !KEY.is_met(name) {
        wrong.push(format!("name part {}", KEY.refusal()));
    }
    wrong
}

fn is_date(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_shaped = bytes.len() == 10
        && bytes
            .iter()
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { *byte == b'-' } else { byte.is_ascii_digit() });
    is_shaped && text.parse::<jiff::civil::Date>().is_ok()
}

fn is_date_time(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let mut parts = text.split('t');
    let (Some(date), Some(time)) = (parts.next(), parts.next()) else { return false };
    is_date(date) && fits(TIME, time)
}

fn validate(asked: &Asked<'_>) -> Outcome {
    let [Value::Format(name), Value::String(text)] = asked.of else { return asked.no() };
    asked.may_make(16 * text.len() + 1024)?;
    let one = |is_good: bool, why: &str| if is_good { Vec::new() } else { vec![why.to_owned()] };
    let wrong = match *name {
        "dns1123Label" => label(text),
        "dns1123LabelPrefix" => label(&prefix(text)),
        "dns1123Subdomain" => SUBDOMAIN.wrong(text),
        "dns1123SubdomainPrefix" => SUBDOMAIN.wrong(&prefix(text)),
        "dns1035Label" => OLD_LABEL.wrong(text),
        "dns1035LabelPrefix" => OLD_LABEL.wrong(&prefix(text)),
        "qualifiedName" => qualified_name(text),
        "labelValue" => LABEL_VALUE.wrong(text),
        // What Go says quotes the text, which may not be told.
        "uri" => one(url::is_url(text), "is no URL that stands by itself"),
        "uuid" => one(fits(UUID, text), "does not match the UUID format"),
        "byte" => one(fits(BASE64, text), "invalid base64"),
        "date" => one(is_date(text), "invalid date"),
        _ => one(is_date_time(text), "invalid datetime"),
    };
    if wrong.is_empty() {
        return Ok(Value::Optional(None));
    }
    Ok(Value::some(Value::list(wrong.into_iter().map(Value::text).collect())))
}

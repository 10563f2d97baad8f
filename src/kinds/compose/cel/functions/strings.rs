//! Texts, counted in code points. Pure.

use super::{
    super::value::{Key, Value},
    Asked, Entry,
    Form::{Function, Method},
    Outcome, time, whole,
};
use crate::kinds::compose::cel::run::Halt;

pub(super) const ENTRIES: &[Entry] = &[
    ("contains", Method, 2, 2, |asked| test(asked, |text, part| text.contains(part))),
    ("startsWith", Method, 2, 2, |asked| test(asked, |text, part| text.starts_with(part))),
    ("endsWith", Method, 2, 2, |asked| test(asked, |text, part| text.ends_with(part))),
    ("charAt", Method, 2, 2, char_at),
    ("substring", Method, 2, 3, substring),
    ("lowerAscii", Method, 1, 1, |asked| changed(asked, str::to_ascii_lowercase)),
    ("upperAscii", Method, 1, 1, |asked| changed(asked, str::to_ascii_uppercase)),
    ("trim", Method, 1, 1, |asked| changed(asked, |text| text.trim().to_owned())),
    ("split", Method, 2, 3, split),
    ("join", Method, 1, 2, join),
    ("replace", Method, 3, 4, replace),
    ("format", Method, 2, 2, format),
    ("strings.quote", Function, 1, 1, quote),
];

/// The most digits after the point in a format.
const PRECISION: usize = 100;

fn test(asked: &Asked<'_>, by: fn(&str, &str) -> bool) -> Outcome {
    let [Value::String(text), Value::String(part)] = asked.of else { return asked.no() };
    asked.spend(text.len() + part.len())?;
    Ok(Value::Bool(by(text, part)))
}

fn changed(asked: &Asked<'_>, by: fn(&str) -> String) -> Outcome {
    let [Value::String(text)] = asked.of else { return asked.no() };
    asked.may_make(text.len())?;
    Ok(Value::text(by(text)))
}

/// Where the character of that number begins; the end of the text is one as well.
fn byte_of(text: &str, character: i64) -> Option<usize> {
    text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(usize::try_from(character).ok()?)
}

fn beyond() -> Halt {
    Halt::Failed("an index goes beyond the text".to_owned())
}

fn char_at(asked: &Asked<'_>) -> Outcome {
    let [Value::String(text), Value::Int(at)] = asked.of else { return asked.no() };
    asked.spend(text.len())?;
    let at = byte_of(text, *at).ok_or_else(beyond)?;
    Ok(Value::text(text[at..].chars().next().map(String::from).unwrap_or_default()))
}

fn substring(asked: &Asked<'_>) -> Outcome {
    let (text, from, to) = match asked.of {
        [Value::String(text), Value::Int(from)] => (text, from, None),
        [Value::String(text), Value::Int(from), Value::Int(to)] => (text, from, Some(to)),
        _ => return asked.no(),
    };
    asked.spend(2 * text.len())?;
    let from = byte_of(text, *from).ok_or_else(beyond)?;
    let to = to.map_or(Some(text.len()), |to| byte_of(text, *to)).ok_or_else(beyond)?;
    asked.text(text.get(from..to).ok_or_else(beyond)?)
}

/// The text, the part, and from or to which character it is looked for.
fn sought<'a>(asked: &'a Asked<'_>) -> Result<(&'a str, &'a str, Option<i64>), Halt> {
    let sought = match asked.of {
        [Value::String(text), Value::String(part)] => (&**text, &**part, None),
        [Value::String(text), Value::String(part), Value::Int(at)] => (&**text, &**part, Some(*at)),
        _ => return asked.no(),
    };
    asked.spend(3 * sought.0.len() + sought.1.len())?;
    if sought.2.is_some_and(i64::is_negative) { Err(beyond()) } else { Ok(sought) }
}

fn number_of(text: &str, byte: Option<usize>) -> Value {
    byte.map_or(Value::Int(-1), |byte| whole(text[..byte].chars().count()))
}

pub(super) fn index_of(asked: &Asked<'_>) -> Outcome {
    let (text, part, from) = sought(asked)?;
    let begin = byte_of(text, from.unwrap_or(0));
    Ok(match begin {
        None if part.is_empty() => whole(text.chars().count()),
        None => Value::Int(-1),
        Some(begin) => number_of(text, text[begin..].find(part).map(|at| begin + at)),
    })
}

pub(super) fn last_index_of(asked: &Asked<'_>) -> Outcome {
    let (text, part, last) = sought(asked)?;
    let Some(last) = last else { return Ok(number_of(text, text.rfind(part))) };
    Ok(match byte_of(text, last) {
        _ if part.is_empty() => whole(text.chars().count().min(usize::try_from(last).unwrap_or(usize::MAX))),
        Some(begin) if begin < text.len() => {
            // One that begins there is found as well.
            let mut end = text.len().min(begin + part.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            number_of(text, text[..end].rfind(part))
        }
        _ => Value::Int(-1),
    })
}

pub(super) fn reverse(asked: &Asked<'_>) -> Outcome {
    changed(asked, |text| text.chars().rev().collect())
}

/// How many at the most: all of them if it is negative or is not said.
fn most(asked: &Asked<'_>, argument: Option<&Value>) -> Result<usize, Halt> {
    match argument {
        None => Ok(usize::MAX),
        Some(Value::Int(number)) => Ok(usize::try_from(*number).unwrap_or(usize::MAX)),
        Some(_) => asked.no(),
    }
}

fn split(asked: &Asked<'_>) -> Outcome {
    let [Value::String(text), Value::String(by), rest @ ..] = asked.of else { return asked.no() };
    let most = most(asked, rest.first())?;
    asked.spend(2 * text.len())?;
    let parts = if by.is_empty() { text.chars().count() } else { text.matches(&**by).count() + 1 };
    asked.may_make(text.len() + parts.min(most) * 40)?;
    let parts: Vec<Value> = match (by.is_empty(), most) {
        (_, 0) => Vec::new(),
        (true, most) => {
            let cut = byte_of(text, i64::try_from(most - 1).unwrap_or(i64::MAX)).unwrap_or(text.len());
            let (each, rest) = text.split_at(cut);
            let each = each.chars().map(|character| Value::text(character.to_string()));
            each.chain((!rest.is_empty()).then(|| Value::text(rest))).collect()
        }
        (false, most) => text.splitn(most, &**by).map(Value::text).collect(),
    };
    Ok(Value::list(parts))
}

/// Of texts: what else there is has no text that is the same everywhere.
fn join(asked: &Asked<'_>) -> Outcome {
    let (list, by) = match asked.of {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(by)] => (list, &**by),
        _ => return asked.no(),
    };
    asked.spend(16 * list.items.len())?;
    let mut parts = Vec::with_capacity(list.items.len());
    for item in &list.items {
        let Value::String(part) = item else { return asked.no() };
        parts.push(&**part);
    }
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    asked.may_make(length.saturating_add(by.len().saturating_mul(parts.len())))?;
    Ok(Value::text(parts.join(by)))
}

fn replace(asked: &Asked<'_>) -> Outcome {
    let [Value::String(text), Value::String(old), Value::String(new), rest @ ..] = asked.of else { return asked.no() };
    let most = most(asked, rest.first())?;
    asked.spend(2 * text.len())?;
    let times = text.matches(&**old).take(most).count();
    asked.may_make(text.len().saturating_add(times.saturating_mul(new.len())))?;
    Ok(Value::text(text.replacen(&**old, new, times)))
}

fn quote(asked: &Asked<'_>) -> Outcome {
    let [Value::String(text)] = asked.of else { return asked.no() };
    asked.may_make(2 * text.len())?;
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x0b' => quoted.push_str("\\v"),
            '\\' | '"' => quoted.extend(['\\', character]),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    Ok(Value::text(quoted))
}

/// As the specification has it: no separators of thousands.
fn format(asked: &Asked<'_>) -> Outcome {
    let [Value::String(pattern), Value::List(list)] = asked.of else { return asked.no() };
    let wrong = |why: &str| Halt::Failed(format!("format: {why}"));
    asked.spend(pattern.len())?;
    let mut made = String::new();
    let mut items = list.items.iter();
    let mut rest = &**pattern;
    while let Some(at) = rest.find('%') {
        made.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            made.push('%');
            rest = after;
            continue;
        }
        let item = items.next().ok_or_else(|| wrong("fewer values than the text asks for"))?;
        let mut precision = 6;
        if let Some(after) = rest.strip_prefix('.') {
            let length = after.len() - after.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
            let number = after[..length].parse().ok().filter(|number| *number <= PRECISION);
            precision = number.ok_or_else(|| wrong(&format!("writes at most {PRECISION} digits after the point")))?;
            rest = &after[length..];
        }
        let clause = rest.chars().next().ok_or_else(|| wrong("the text ends in `%`"))?;
        rest = &rest[clause.len_utf8()..];
        let size = usize::try_from(item.size()).unwrap_or(usize::MAX);
        asked.may_make(size.saturating_mul(2).saturating_add(2 * PRECISION))?;
        let text = match clause {
            's' => {
                let mut text = String::new();
                write(asked, item, &mut text)?.then_some(text)
            }
            'd' => match item {
                Value::Int(_) | Value::Uint(_) | Value::Double(_) => {
                    let mut text = String::new();
                    write(asked, item, &mut text)?.then_some(text)
                }
                _ => None,
            },
            'f' => number(item).map(|number| named(number).unwrap_or_else(|| format!("{number:.precision$}"))),
            'e' => number(item).map(|number| named(number).unwrap_or_else(|| scientific(number, precision))),
            'b' => match item {
                Value::Bool(value) => Some(u8::from(*value).to_string()),
                item => digits(item, |number| format!("{number:b}")),
            },
            'o' => digits(item, |number| format!("{number:o}")),
            'x' | 'X' => {
                let text = match item {
                    Value::String(text) => Some(hex(text.as_bytes())),
                    Value::Bytes(bytes) => Some(hex(bytes)),
                    item => digits(item, |number| format!("{number:x}")),
                };
                text.map(|text| if clause == 'X' { text.to_ascii_uppercase() } else { text })
            }
            _ => return Err(wrong("`%` stands before s, d, f, e, b, o, x or X; write `%%` for `%`")),
        };
        let refused = || wrong(&format!("`%{clause}` has no value for {}", item.type_name()));
        let text = text.ok_or_else(refused)?;
        asked.may_make(text.len())?;
        made.push_str(&text);
    }
    made.push_str(rest);
    asked.text(made)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // To a String it never fails.
        _ = write!(text, "{byte:02x}");
        text
    })
}

fn digits(item: &Value, by: fn(u64) -> String) -> Option<String> {
    match item {
        Value::Int(number) if *number < 0 => Some(format!("-{}", by(number.unsigned_abs()))),
        Value::Int(number) => Some(by(number.unsigned_abs())),
        Value::Uint(number) => Some(by(*number)),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a double has not the digits of every integer")]
fn number(item: &Value) -> Option<f64> {
    match item {
        Value::Int(number) => Some(*number as f64),
        Value::Uint(number) => Some(*number as f64),
        Value::Double(number) => Some(*number),
        _ => None,
    }
}

/// What is written as a word.
fn named(number: f64) -> Option<String> {
    let name = match number {
        number if number.is_nan() => "NaN",
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        _ => return None,
    };
    Some(name.to_owned())
}

fn scientific(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// Writes a value as `%s` does. Whether it can be.
fn write(asked: &Asked<'_>, value: &Value, text: &mut String) -> Result<bool, Halt> {
    match value {
        Value::String(part) => text.push_str(part),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(part) => text.push_str(part),
            Err(_) => return Ok(false),
        },
        Value::Null => text.push_str("null"),
        Value::Bool(value) => text.push_str(&value.to_string()),
        Value::Int(number) => text.push_str(&number.to_string()),
        Value::Uint(number) => text.push_str(&number.to_string()),
        Value::Double(number) => {
            let number = named(*number).unwrap_or_else(|| number.to_string());
            // It may have hundreds of digits, of which its size tells nothing.
            asked.may_make(number.len())?;
            text.push_str(&number);
        }
        Value::Duration(nanos) => text.push_str(&time::write_duration(*nanos)),
        Value::Timestamp(time) => text.push_str(&time.in_utc().write()),
        Value::Type(name) => text.push_str(name),
        Value::List(list) => {
            text.push('[');
            for (number, item) in list.items.iter().enumerate() {
                text.push_str(if number > 0 { ", " } else { "" });
                if !write(asked, item, text)? {
                    return Ok(false);
                }
            }
            text.push(']');
        }
        Value::Map(map) => {
            let mut entries = Vec::with_capacity(map.fields.len());
            for (key, value) in &map.fields {
                let mut written = String::new();
                if !write(asked, value, &mut written)? {
                    return Ok(false);
                }
                entries.push((key_text(key), written));
            }
            // In the order of what is written: 10 comes before 9.
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
            text.push('{');
            for (number, (key, value)) in entries.iter().enumerate() {
                text.extend([if number > 0 { ", " } else { "" }, key, ": ", value]);
            }
            text.push('}');
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn key_text(key: &Key) -> String {
    match key {
        Key::Bool(value) => value.to_string(),
        Key::Int(number) => number.to_string(),
        Key::Uint(number) => number.to_string(),
        Key::String(text) => text.as_ref().to_owned(),
    }
}

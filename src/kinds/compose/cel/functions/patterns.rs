//! Regular expressions in the syntax of RE2, which Kubernetes uses. Pure.
//!
//! What reads and runs them here knows the same and more, and a few signs mean something else: `\d` is a digit of ASCII in
//! RE2. So a pattern is written anew before it is compiled, and what RE2 does not know is refused.

use std::sync::Arc;

use regex::Regex;

use super::{
    super::{run::Halt, value::Value},
    Asked, Entry,
    Form::Method,
    Outcome,
};

pub(super) const ENTRIES: &[Entry] = &[
    ("matches", super::Form::Both, 2, 2, |asked| {
        let (text, pattern) = searching(asked)?;
        Ok(Value::Bool(pattern.regex.is_match(text)))
    }),
    ("find", Method, 2, 2, |asked| {
        let (text, pattern) = searching(asked)?;
        asked.text(pattern.regex.find(text).map_or("", |found| found.as_str()))
    }),
    ("findAll", Method, 2, 3, find_all),
];

/// The largest compiled regular expression, in bytes, and what the smallest are taken for.
const LARGEST: usize = 1 << 18;
const SMALLEST: usize = 1 << 9;
/// What a compiled one takes besides, in bytes, and what the smallest may remember of their searches.
const OVERHEAD: usize = 1 << 15;
/// The longest text of one, in bytes: it is read before it is known how large it becomes.
const LONGEST: usize = 1 << 14;
/// The most repetitions that RE2 counts.
const MOST: u32 = 1000;

/// A compiled regular expression, and about how large it is: a short text makes a large one, as `.{1000}` does.
#[derive(Clone, Debug)]
pub(in super::super) struct Pattern {
    regex: Regex,
    size: usize,
}

impl Pattern {
    /// The work of a search, which is in as many states as there are at each byte in the worst case.
    fn work(&self, bytes: usize) -> usize {
        bytes.saturating_mul(4 + self.size / 32)
    }
}

/// The text, and the pattern.
fn searching<'a>(asked: &'a Asked<'_>) -> Result<(&'a str, Pattern), Halt> {
    let [Value::String(text), Value::String(pattern), ..] = asked.of else { return asked.no() };
    let compiled = compiled(asked, pattern)?;
    asked.spend(compiled.work(text.len()))?;
    Ok((text, compiled))
}

/// Compiled once for an object, and within bounds.
fn compiled(asked: &Asked<'_>, text: &Arc<str>) -> Result<Pattern, Halt> {
    asked.spend(text.len())?;
    if let Some(pattern) = asked.run.patterns.borrow().get(text) {
        return Ok(pattern.clone());
    }
    asked.may_make(OVERHEAD)?;
    let mut largest = SMALLEST;
    loop {
        // It takes as long as what it makes of it is large, and is kept with what searches remember.
        asked.may_make(4 * largest)?;
        match built(text, largest) {
            Ok(regex) => {
                let pattern = Pattern { regex, size: largest };
                asked.run.patterns.borrow_mut().insert(Arc::clone(text), pattern.clone());
                return Ok(pattern);
            }
            Err(Wrong::TooLarge) if largest < LARGEST => largest *= 2,
            Err(wrong) => return Err(Halt::Failed(format!("{}: {}", asked.function, wrong.told()))),
        }
    }
}

/// What is wrong with a pattern that stands in the text of an expression.
pub(in super::super) fn check(pattern: &str) -> Result<(), String> {
    built(pattern, LARGEST).map(drop).map_err(|wrong| wrong.told())
}

/// Why a pattern is not compiled.
enum Wrong {
    TooLarge,
    Told(String),
}

impl Wrong {
    fn told(self) -> String {
        match self {
            Self::TooLarge => "the regular expression is too large".to_owned(),
            Self::Told(why) => format!("the regular expression {why}"),
        }
    }
}

/// Compiles a pattern, if it becomes no larger than that.
fn built(pattern: &str, largest: usize) -> Result<Regex, Wrong> {
    if pattern.len() > LONGEST {
        return Err(Wrong::TooLarge);
    }
    let rewritten = rewritten(pattern).map_err(Wrong::Told)?;
    let built = regex::RegexBuilder::new(&rewritten).size_limit(largest).dfa_size_limit(largest.max(OVERHEAD)).build();
    built.map_err(|wrong| match wrong {
        regex::Error::CompiledTooBig(_) => Wrong::TooLarge,
        _ => Wrong::Told("is none".to_owned()),
    })
}

fn find_all(asked: &Asked<'_>) -> Outcome {
    let most = match asked.of {
        [_, _, Value::Int(most)] => usize::try_from(*most).unwrap_or(usize::MAX),
        [_, _] => usize::MAX,
        _ => return asked.no(),
    };
    let (text, pattern) = searching(asked)?;
    let mut found = Vec::new();
    for part in pattern.regex.find_iter(text).take(most) {
        // Each search may look at the rest of the text.
        asked.spend(pattern.work(text.len() - part.start()) / 16)?;
        asked.may_make(part.len())?;
        found.push(Value::text(part.as_str()));
    }
    Ok(Value::list(found))
}

/// Signs of RE2 in a class and outside of one.
fn class_of(kind: char) -> Option<&'static str> {
    Some(match kind {
        'd' => "0-9",
        's' => "\\t\\n\\x0C\\r\\x20",
        'w' => "0-9A-Za-z_",
        _ => return None,
    })
}

/// The pattern as the library here reads it.
fn rewritten(pattern: &str) -> Result<String, String> {
    let mut made = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    // Whether what went before repeats already: RE2 repeats nothing twice, but for `?` that makes it lazy.
    let mut repeats = false;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        let was = std::mem::take(&mut repeats);
        rest = match first {
            '\\' => escape(after, &mut made)?,
            '[' => class(after, &mut made)?,
            '(' => group(after, &mut made)?,
            '*' | '+' | '?' => {
                if was {
                    return Err("repeats what repeats already".to_owned());
                }
                repeats = true;
                made.push(first);
                lazy(after, &mut made)
            }
            '{' => match repetition(after) {
                None => {
                    made.push_str("\\{");
                    after
                }
                Some((least, most, end)) => {
                    if was {
                        return Err("repeats what repeats already".to_owned());
                    }
                    if least > MOST || most.is_some_and(|most| most > MOST || most < least) {
                        return Err(format!("repeats more than {MOST} times, or less than at least"));
                    }
                    repeats = true;
                    made.push_str(&rest[..1 + end]);
                    lazy(&after[end..], &mut made)
                }
            },
            '}' | ']' => {
                made.extend(['\\', first]);
                after
            }
            other => {
                made.push(other);
                after
            }
        };
    }
    Ok(made)
}

fn lazy<'t>(rest: &'t str, made: &mut String) -> &'t str {
    rest.strip_prefix('?').map_or(rest, |rest| {
        made.push('?');
        rest
    })
}

/// `{n}`, `{n,}` and `{n,m}`: how often, and where it ends. Else it is text.
fn repetition(text: &str) -> Option<(u32, Option<u32>, usize)> {
    let end = text.find('}')?;
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u32::MAX))
    };
    let (least, most) = match text[..end].split_once(',') {
        None => {
            let times = number(&text[..end])?;
            (times, Some(times))
        }
        Some((least, "")) => (number(least)?, None),
        Some((least, most)) => (number(least)?, Some(number(most)?)),
    };
    Some((least, most, end + 1))
}

/// A group: its name, or its flags, of which RE2 has four.
fn group<'t>(rest: &'t str, made: &mut String) -> Result<&'t str, String> {
    made.push('(');
    let Some(inside) = rest.strip_prefix('?') else { return Ok(rest) };
    let named = inside.strip_prefix("P<").or_else(|| inside.strip_prefix('<'));
    if let Some(named) = named {
        let end = named.find('>').ok_or("has a group without the end of its name")?;
        let name = &named[..end];
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err("has a group without a name of letters and digits".to_owned());
        }
        // A name may begin with a digit there.
        made.push_str("?P<_");
        made.push_str(name);
        made.push('>');
        return Ok(&named[end + 1..]);
    }
    let length = inside.find([':', ')']).ok_or("has a group without its end")?;
    let flags = &inside[..length];
    let is_known = flags.bytes().all(|flag| b"imsU-".contains(&flag)) && flags.matches('-').count() <= 1;
    if !is_known || flags.ends_with('-') || flags.is_empty() && inside[length..].starts_with(')') {
        return Err(
            "has a group that RE2 does not know; it knows (?:…), (?P<name>…) and the flags i, m, s and U".to_owned()
        );
    }
    made.push('?');
    made.push_str(flags);
    Ok(&inside[length..])
}

/// What stands after a backslash, outside of a class.
fn escape<'t>(rest: &'t str, made: &mut String) -> Result<&'t str, String> {
    let kind = rest.chars().next().ok_or("ends in a backslash")?;
    let after = &rest[kind.len_utf8()..];
    match kind {
        'd' | 's' | 'w' => {
            made.extend(["[", class_of(kind).unwrap_or_default(), "]"]);
            Ok(after)
        }
        'D' | 'S' | 'W' => {
            made.extend(["[^", class_of(kind.to_ascii_lowercase()).unwrap_or_default(), "]"]);
            Ok(after)
        }
        'b' => {
            made.push_str("(?-u:\\b)");
            Ok(after)
        }
        // It is at the sides of characters too, of which this library has no word for ASCII alone.
        'B' => Err("has `\\B`, which is not supported here".to_owned()),
        'A' | 'z' => {
            made.extend(['\\', kind]);
            Ok(after)
        }
        'Q' => {
            let end = after.find("\\E");
            made.push_str(&regex::escape(&after[..end.unwrap_or(after.len())]));
            Ok(end.map_or("", |end| &after[end + 2..]))
        }
        _ => character(rest, made),
    }
}

/// An escape that stands for one character, or for those of a property.
fn character<'t>(rest: &'t str, made: &mut String) -> Result<&'t str, String> {
    let kind = rest.chars().next().ok_or("ends in a backslash")?;
    let after = &rest[kind.len_utf8()..];
    let (code, after) = match kind {
        'p' | 'P' => {
            let length = if after.starts_with('{') {
                after.find('}').map(|end| end + 1)
            } else {
                after.chars().next().map(char::len_utf8)
            };
            let length = length.ok_or("has a property without its name")?;
            // A few names are known here and not there.
            if after[..length].contains(['=', ':', '_', '!']) {
                return Err("has a property that RE2 does not know".to_owned());
            }
            made.extend(["\\", &rest[..1], &after[..length]]);
            return Ok(&after[length..]);
        }
        'a' => (7, after),
        'f' => (12, after),
        't' => (9, after),
        'n' => (10, after),
        'r' => (13, after),
        'v' => (11, after),
        'x' => {
            let (digits, after) = match after.strip_prefix('{') {
                Some(inside) => inside.split_once('}').ok_or("has a code without its end")?,
                None => after.split_at_checked(2).ok_or("has a code of fewer than two digits")?,
            };
            let is_hex =
                !digits.is_empty() && digits.len() <= 8 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            (u32::from_str_radix(digits, 16).ok().filter(|_| is_hex).ok_or("has a code that is no number")?, after)
        }
        // Octal: up to three digits, of which a single one but 0 would be a back reference.
        '0'..='7' => {
            let length = rest.bytes().take(3).take_while(|digit| (b'0'..=b'7').contains(digit)).count();
            if kind != '0' && length == 1 {
                return Err("refers back, which RE2 does not".to_owned());
            }
            (u32::from_str_radix(&rest[..length], 8).unwrap_or(0), &rest[length..])
        }
        other if other.is_ascii_punctuation() => (u32::from(other), after),
        _ => return Err("has an escape that RE2 does not know".to_owned()),
    };
    char::from_u32(code).ok_or("has a code that is no character")?;
    made.push_str(&format!("\\x{{{code:X}}}"));
    Ok(after)
}

/// A class: what RE2 takes for itself in it and this library does not is escaped.
fn class<'t>(rest: &'t str, made: &mut String) -> Result<&'t str, String> {
    made.push('[');
    let mut rest = rest.strip_prefix('^').map_or(rest, |rest| {
        made.push('^');
        rest
    });
    let mut is_first = true;
    loop {
        let first = rest.chars().next().ok_or("has a class without its end")?;
        let after = &rest[first.len_utf8()..];
        rest = match first {
            ']' if !is_first => {
                made.push(']');
                return Ok(after);
            }
            '[' if after.starts_with(':') && after.contains(":]") => {
                let end = after.find(":]").map_or(0, |end| end + 2);
                made.push('[');
                made.push_str(&after[..end]);
                &after[end..]
            }
            '\\' => match after.chars().next() {
                Some(kind @ ('d' | 's' | 'w')) => {
                    made.push_str(class_of(kind).unwrap_or_default());
                    &after[1..]
                }
                Some(kind @ ('D' | 'S' | 'W')) => {
                    made.extend(["[^", class_of(kind.to_ascii_lowercase()).unwrap_or_default(), "]"]);
                    &after[1..]
                }
                _ => character(after, made)?,
            },
            '-' => {
                // It is a range between two, and else itself.
                let is_range = !is_first && !after.starts_with(']');
                made.push_str(if is_range { "-" } else { "\\-" });
                after
            }
            '[' | ']' | '&' | '~' | '^' => {
                made.extend(['\\', first]);
                after
            }
            other => {
                made.push(other);
                after
            }
        };
        is_first = false;
    }
}

//! The functions of the language, by what they are about. Each pays for what it goes through and for what it makes before
//! it does. Pure.

mod convert;
pub(super) mod encode;
mod lists;
mod math;
mod named;
mod net;
pub(super) mod patterns;
pub(super) mod quantity;
pub(super) mod semver;
mod strings;
pub(super) mod time;
pub(super) mod url;

use super::{
    run::{Halt, Outcome, Run, types},
    value::Value,
};

/// A function.
pub(super) type Native = fn(&Asked<'_>) -> Outcome;

/// What a function is asked.
pub(super) struct Asked<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) function: &'a str,
    /// What stood before the dot, if it is a method, and the arguments.
    pub(super) of: &'a [Value],
}

impl Asked<'_> {
    /// That it has no value for what it got. Only types are told.
    fn refused(&self) -> Halt {
        Halt::Failed(format!("{} has no value for ({})", self.function, types(self.of)))
    }

    fn no<T>(&self) -> Result<T, Halt> {
        Err(self.refused())
    }

    fn or_refused<T>(&self, value: Option<T>) -> Result<T, Halt> {
        value.ok_or_else(|| self.refused())
    }

    fn spend(&self, work: usize) -> Result<(), Halt> {
        Ok(self.run.budget.spend(work as u64)?)
    }

    /// So many bytes may be made.
    fn may_make(&self, bytes: usize) -> Result<(), Halt> {
        Ok(self.run.budget.make((bytes as u64).saturating_add(32))?)
    }

    /// A text, paid for.
    fn text(&self, text: impl Into<String>) -> Outcome {
        let text = text.into();
        self.may_make(text.len())?;
        Ok(Value::text(text))
    }
}

/// Whether a function stands before its arguments, or after what it is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Function,
    Method,
    Both,
}

use Form::{Both, Function, Method};

/// A function: its name, how it is written, how many arguments it takes with what it is of, and what does it.
type Entry = (&'static str, Form, usize, usize, Native);

const ENTRIES: &[&[Entry]] = &[
    convert::ENTRIES,
    encode::ENTRIES,
    lists::ENTRIES,
    math::ENTRIES,
    named::ENTRIES,
    net::ENTRIES,
    patterns::ENTRIES,
    quantity::ENTRIES,
    semver::ENTRIES,
    strings::ENTRIES,
    time::ENTRIES,
    url::ENTRIES,
];

/// Functions that several kinds of values have: the first argument says which of them is meant.
const SHARED: &[Entry] = &[
    ("size", Both, 1, 1, size),
    ("indexOf", Method, 2, 3, |asked| match asked.of {
        [Value::List(_), ..] => lists::index_of(asked),
        _ => strings::index_of(asked),
    }),
    ("lastIndexOf", Method, 2, 3, |asked| match asked.of {
        [Value::List(_), ..] => lists::last_index_of(asked),
        _ => strings::last_index_of(asked),
    }),
    ("reverse", Method, 1, 1, |asked| match asked.of {
        [Value::List(_)] => lists::reverse(asked),
        _ => strings::reverse(asked),
    }),
    ("isGreaterThan", Method, 2, 2, |asked| Ok(Value::Bool(order(asked)?.is_gt()))),
    ("isLessThan", Method, 2, 2, |asked| Ok(Value::Bool(order(asked)?.is_lt()))),
    ("compareTo", Method, 2, 2, |asked| Ok(Value::Int(order(asked)? as i64))),
    ("ip", Function, 1, 1, net::ip),
    ("ip", Method, 1, 1, net::ip_of),
];

fn order(asked: &Asked<'_>) -> Result<std::cmp::Ordering, Halt> {
    asked.run.budget.spend(asked.of.iter().map(Value::size).fold(0, u64::saturating_add))?;
    match asked.of {
        [Value::Quantity(a), Value::Quantity(b)] => Ok(a.compare(b)),
        [Value::Semver(a), Value::Semver(b)] => Ok(a.compare(b)),
        _ => asked.no(),
    }
}

fn size(asked: &Asked<'_>) -> Outcome {
    let size = match asked.of {
        [Value::List(list)] => list.items.len(),
        [Value::Map(map)] => map.fields.len(),
        [Value::Bytes(bytes)] => bytes.len(),
        [Value::String(text)] => {
            asked.spend(text.len() / 8)?;
            text.chars().count()
        }
        _ => return asked.no(),
    };
    Ok(whole(size))
}

fn whole(number: usize) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn entries(name: &str) -> impl Iterator<Item = &'static Entry> {
    ENTRIES.iter().copied().chain([SHARED]).flatten().filter(move |entry| entry.0 == name)
}

/// The names of all functions.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().copied().chain([SHARED]).flatten().map(|entry| entry.0)
}

/// Whether there is a function of that name.
pub(super) fn is_function(name: &str) -> bool {
    entries(name).next().is_some()
}

/// The function of that name for so many arguments; the error says how it is written.
pub(super) fn find(name: &str, is_method: bool, arguments: usize) -> Result<Native, String> {
    let count = arguments + usize::from(is_method);
    let form = if is_method { Method } else { Function };
    let mut known = None;
    for (_, is, least, most, native) in entries(name) {
        if *is == Both || *is == form {
            if (*least..=*most).contains(&count) {
                return Ok(*native);
            }
            let (least, most) = (least - usize::from(is_method), most - usize::from(is_method));
            let range = if least == most { least.to_string() } else { format!("{least} to {most}") };
            known = Some(format!("`{name}` takes {range} arguments, and gets {arguments}"));
        } else {
            known = known.or_else(|| {
                let form = if is_method { format!("{name}(value)") } else { format!("value.{name}()") };
                Some(format!("`{name}` is written {form}"))
            });
        }
    }
    Err(known.unwrap_or_else(|| match unsupported(name) {
        Some(why) => format!("`{name}` is not supported: {why}"),
        None => format!("unknown function `{name}`"),
    }))
}

/// What Kubernetes or others have, and why it is not here.
fn unsupported(name: &str) -> Option<&'static str> {
    Some(match name {
        "group" | "serviceAccount" | "resource" | "subresource" | "namespace" | "check" | "allowed" | "authorizer"
        | "fieldSelector" | "labelSelector" | "reason" | "errored" => {
            "an expression asks no API server; `escalation: Check` asks what an author may do"
        }
        "jsonpatch.escapeKey" => "there are no patches; write the fields in the template",
        "random.seededString" => "a value may not be guessed from what is known; see generated values",
        "json.encode" => "write json.marshal(value)",
        "json.decode" => "write json.unmarshal(text)",
        "hash.md5" | "hash.sha1" => "write hash.sha256(text)",
        "proto.getExt" | "proto.hasExt" => "there are no protocol buffers in an object",
        _ => return None,
    })
}

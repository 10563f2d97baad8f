//! One mapping of the file while its fields are taken from it: what is not taken is an error.

use std::time::Duration;

use super::{
    duration,
    errors::Gathered,
    raw::{Node, Position, Value},
};

pub(crate) struct Section<'n> {
    path: String,
    at: Position,
    fields: Vec<Field<'n>>,
    known: Vec<&'static str>,
}

struct Field<'n> {
    key_at: Position,
    name: &'n str,
    node: &'n Node,
    taken: bool,
}

/// A field's value with where it stands and what it is called.
#[derive(Clone, Debug)]
pub(crate) struct Located<T> {
    pub(crate) at: Position,
    pub(crate) path: String,
    pub(crate) value: T,
}

impl<T> Located<T> {
    /// The same place, with what is made of the value.
    pub(crate) fn map<U>(self, make: impl FnOnce(T) -> U) -> Located<U> {
        Located { at: self.at, path: self.path, value: make(self.value) }
    }
}

impl<'n> Section<'n> {
    /// The mapping in `node`, or an error and an empty section, so that reading goes on with the defaults.
    pub(crate) fn open(node: &'n Node, path: &str, errors: &mut Gathered<'_>) -> Self {
        let mut section = Self { path: path.to_owned(), at: node.at, fields: Vec::new(), known: Vec::new() };
        let Value::Map(entries) = &node.value else {
            let message = format!("expected a mapping of fields, found {}", node.describe());
            errors.add(node.at, path, message);
            return section;
        };
        for (key, value) in entries {
            if let Some(first) = section.fields.iter().find(|field| field.name == key.name) {
                let message = format!("the field is given twice, first on line {}; remove one", first.key_at.line);
                errors.add(key.at, &section.path_of(&key.name), message);
                continue;
            }
            section.fields.push(Field { key_at: key.at, name: &key.name, node: value, taken: false });
        }
        section
    }

    /// Where the section begins: the place for an error about a field that is not there.
    pub(crate) fn at(&self) -> Position {
        self.at
    }

    pub(crate) fn path_of(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// Where a field's value stands, or the section if it does not have the field.
    pub(crate) fn place(&self, name: &str) -> (Position, String) {
        let field = self.fields.iter().find(|field| field.name == name);
        (field.map_or(self.at, |field| field.node.at), self.path_of(name))
    }

    pub(crate) fn take(&mut self, name: &'static str) -> Option<&'n Node> {
        self.known.push(name);
        let field = self.fields.iter_mut().find(|field| field.name == name)?;
        field.taken = true;
        Some(field.node)
    }

    /// Refuses a field that is documented but not built yet, in words kinder than "unknown".
    pub(crate) fn not_yet(&mut self, name: &str, errors: &mut Gathered<'_>) {
        if let Some(field) = self.fields.iter_mut().find(|field| field.name == name) {
            field.taken = true;
            let at = field.key_at;
            errors.add(at, &self.path_of(name), "not in this release; remove the field");
        }
    }

    /// Reports every field that is not known.
    pub(crate) fn finish(self, errors: &mut Gathered<'_>) {
        for field in self.fields.iter().filter(|field| !field.taken) {
            let meant = self.known.iter().find(|known| known.eq_ignore_ascii_case(field.name));
            let help = meant.map_or_else(
                || format!("known here: {}", self.known.join(", ")),
                |meant| format!("did you mean `{meant}`?"),
            );
            errors.add(field.key_at, &self.path_of(field.name), format!("unknown field; {help}"));
        }
    }

    pub(crate) fn section(&mut self, name: &'static str, errors: &mut Gathered<'_>) -> Option<Self> {
        let node = self.take(name)?;
        Some(Self::open(node, &self.path_of(name), errors))
    }

    pub(crate) fn text(&mut self, name: &'static str, errors: &mut Gathered<'_>) -> Option<Located<&'n str>> {
        let node = self.take(name)?;
        let path = self.path_of(name);
        match &node.value {
            Value::Text(text) => Some(Located { at: node.at, path, value: text }),
            Value::List(_) | Value::Map(_) | Value::Null => {
                errors.add(node.at, &path, format!("expected text, found {}", node.describe()));
                None
            }
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
                errors.add(node.at, &path, format!("expected text, found {}; put it in quotes", node.describe()));
                None
            }
        }
    }

    /// A text that must be exactly `expected`; it is an error if it is not there.
    pub(crate) fn exactly(&mut self, name: &'static str, expected: &str, errors: &mut Gathered<'_>) {
        let found = self.text(name, errors);
        match found {
            Some(found) if found.value != expected => {
                errors.add(found.at, &found.path, format!("must be `{expected}`, found `{}`", found.value));
            }
            None if !self.has(name) => {
                errors.add(self.at, &self.path_of(name), format!("missing; write `{name}: {expected}`"));
            }
            _ => {}
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|field| field.name == name)
    }

    pub(crate) fn number(
        &mut self,
        name: &'static str,
        (least, most): (u16, u16),
        errors: &mut Gathered<'_>,
    ) -> Option<u16> {
        let node = self.take(name)?;
        if let Value::Integer(number) = node.value
            && let Ok(number) = u16::try_from(number)
            && (least..=most).contains(&number)
        {
            return Some(number);
        }
        let message = format!("expected a whole number from {least} to {most}, found {}", node.describe());
        errors.add(node.at, &self.path_of(name), message);
        None
    }

    pub(crate) fn flag(&mut self, name: &'static str, errors: &mut Gathered<'_>) -> Option<bool> {
        let node = self.take(name)?;
        if let Value::Bool(flag) = node.value {
            return Some(flag);
        }
        errors.add(node.at, &self.path_of(name), format!("expected true or false, found {}", node.describe()));
        None
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        name: &'static str,
        choices: &[(&str, T)],
        errors: &mut Gathered<'_>,
    ) -> Option<T> {
        let node = self.take(name)?;
        let text = if let Value::Text(text) = &node.value { text.as_str() } else { "" };
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let meant = words.iter().find(|word| word.eq_ignore_ascii_case(text));
        let help = meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
        let message = format!("expected one of {}, found {}{help}", words.join(", "), node.describe());
        errors.add(node.at, &self.path_of(name), message);
        None
    }

    pub(crate) fn duration(
        &mut self,
        name: &'static str,
        (least, most): (Duration, Duration),
        errors: &mut Gathered<'_>,
    ) -> Option<Located<Duration>> {
        let node = self.take(name)?;
        let path = self.path_of(name);
        let message = match &node.value {
            Value::Text(text) => match duration::parse(text) {
                Ok(value) if value < least => format!("`{text}` is too short; the least is {}", duration::show(least)),
                Ok(value) if value > most => format!("`{text}` is too long; the most is {}", duration::show(most)),
                Ok(value) => return Some(Located { at: node.at, path, value }),
                Err("has no unit") => format!("`{text}` has no unit; write for example `{text}s`"),
                Err(wrong) => {
                    format!("`{text}` {wrong}; write for example `15s`, `1m30s`, `500ms` (units h, m, s, ms)")
                }
            },
            Value::Integer(number @ 0..) => format!("`{number}` has no unit; write for example `{number}s`"),
            Value::Float(number) if *number >= 0.0 => {
                format!("`{number}` has no unit; write for example `{number}s`")
            }
            _ => format!("expected a duration such as `15s`, found {}", node.describe()),
        };
        errors.add(node.at, &path, message);
        None
    }
}

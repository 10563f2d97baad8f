//! A template: a tree of plain values with expressions at its leaves. Pure.
//!
//! A leaf that is one `${…}` and nothing else has the type of its value; where there is text around it, the value becomes text.
//! `$${` stands for `${` itself. A leaf that is null is left out, so that a field can be there or not.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

use super::cel::{Evaluation, Expression, Name, Unknown, end_of};
use crate::config::tree::{Gathered, Node, Value};

/// A template.
#[derive(Debug, Clone)]
pub(super) enum Template {
    Plain(Json),
    Whole(Expression),
    Text(Vec<Part>),
    List(Vec<Self>),
    Map(Vec<(String, Self)>),
}

#[derive(Debug, Clone)]
pub(super) enum Part {
    Plain(String),
    Value(Expression),
}

/// Why a template has no value, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) path: String,
    pub(super) why: Unknown,
}

impl Template {
    /// Reads a template, and adds whatever is wrong with it. `refuse` says why a name must not be referred to there.
    pub(super) fn read(
        node: &Node,
        path: &str,
        refuse: &dyn Fn(&Name) -> Option<String>,
        errors: &mut Gathered<'_>,
    ) -> Self {
        match &node.value {
            Value::Null => Self::Plain(Json::Null),
            Value::Bool(value) => Self::Plain(Json::Bool(*value)),
            Value::Integer(number) => match (i64::try_from(*number), u64::try_from(*number)) {
                (Ok(number), _) => Self::Plain(number.into()),
                (_, Ok(number)) => Self::Plain(number.into()),
                _ => {
                    errors.add(node.at, path, "the number is too large");
                    Self::Plain(Json::Null)
                }
            },
            Value::Float(number) => match serde_json::Number::from_f64(*number) {
                Some(number) => Self::Plain(Json::Number(number)),
                None => {
                    errors.add(node.at, path, "no number that JSON knows");
                    Self::Plain(Json::Null)
                }
            },
            Value::Text(text) => match Self::text(text) {
                Ok(leaf) => {
                    for wrong in leaf.refers().into_iter().filter_map(refuse) {
                        errors.add(node.at, path, wrong);
                    }
                    leaf
                }
                Err(wrong) => {
                    errors.add(node.at, path, wrong);
                    Self::Plain(Json::Null)
                }
            },
            Value::List(items) => {
                let read = |(number, item)| Self::read(item, &format!("{path}[{number}]"), refuse, errors);
                Self::List(items.iter().enumerate().map(read).collect())
            }
            Value::Map(entries) => {
                let mut fields: Vec<(String, Self)> = Vec::new();
                for (key, value) in entries {
                    let path = format!("{path}.{}", key.name);
                    if fields.iter().any(|(name, _)| *name == key.name) {
                        errors.add(key.at, &path, "the field is given twice; remove one");
                    } else if key.name.contains("${") {
                        errors.add(key.at, &path, "a key is plain text; make the whole mapping one expression instead");
                    } else {
                        fields.push((key.name.clone(), Self::read(value, &path, refuse, errors)));
                    }
                }
                Self::Map(fields)
            }
        }
    }

    /// One leaf.
    pub(super) fn text(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                plain.push_str(&rest[..at - 1]);
                plain.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            plain.push_str(&rest[..at]);
            let inside = &rest[at + 2..];
            let end = end_of(inside).ok_or("`${` without its `}`; write `$${` for the text `${`")?;
            let expression = Expression::compile(&inside[..end])
                .map_err(|wrong| format!("`${{{}}}`: {wrong}", inside[..end].trim()))?;
            if !plain.is_empty() {
                parts.push(Part::Plain(std::mem::take(&mut plain)));
            }
            parts.push(Part::Value(expression));
            rest = &inside[end + 1..];
        }
        plain.push_str(rest);
        if !plain.is_empty() || parts.is_empty() {
            parts.push(Part::Plain(plain));
        }
        Ok(match <[Part; 1]>::try_from(parts) {
            Ok([Part::Plain(text)]) => Self::Plain(Json::String(text)),
            Ok([Part::Value(expression)]) => Self::Whole(expression),
            Err(parts) => Self::Text(parts),
        })
    }

    /// Everything that its expressions refer to.
    pub(super) fn refers(&self) -> BTreeSet<&Name> {
        match self {
            Self::Plain(_) => BTreeSet::new(),
            Self::Whole(expression) => expression.refers().iter().collect(),
            Self::Text(parts) => parts
                .iter()
                .filter_map(|part| match part {
                    Part::Plain(_) => None,
                    Part::Value(expression) => Some(expression.refers()),
                })
                .flatten()
                .collect(),
            Self::List(items) => items.iter().flat_map(Self::refers).collect(),
            Self::Map(fields) => fields.iter().flat_map(|(_, field)| field.refers()).collect(),
        }
    }

    /// The field of a mapping.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Map(fields) => fields.iter().find(|(field, _)| field == name).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The value, or `None` where it is left out.
    pub(super) fn value(&self, seen: &Evaluation, path: &str) -> Result<Option<Json>, Failed> {
        let failed = |why| Failed { path: path.to_owned(), why };
        Ok(match self {
            Self::Plain(Json::Null) => None,
            Self::Plain(value) => Some(value.clone()),
            Self::Whole(expression) => without_nulls(seen.value(expression).map_err(failed)?),
            Self::Text(parts) => {
                let mut text = String::new();
                for part in parts {
                    match part {
                        Part::Plain(plain) => text.push_str(plain),
                        Part::Value(expression) => match seen.value(expression).map_err(failed)? {
                            Json::String(value) => text.push_str(&value),
                            Json::Number(value) => text.push_str(&value.to_string()),
                            Json::Bool(value) => text.push_str(if value { "true" } else { "false" }),
                            other => {
                                let what = match other {
                                    Json::Null => "null",
                                    Json::Array(_) => "a list",
                                    _ => "a mapping",
                                };
                                let why = format!("`${{{}}}` is {what} in the midst of text", expression.text());
                                return Err(failed(Unknown::Failed(why)));
                            }
                        },
                    }
                }
                Some(Json::String(text))
            }
            Self::List(items) => {
                let mut values = Vec::new();
                for (number, item) in items.iter().enumerate() {
                    values.extend(item.value(seen, &format!("{path}[{number}]"))?);
                }
                Some(Json::Array(values))
            }
            Self::Map(fields) => {
                let mut values = Map::new();
                for (name, field) in fields {
                    if let Some(value) = field.value(seen, &format!("{path}.{name}"))? {
                        values.insert(name.clone(), value);
                    }
                }
                Some(Json::Object(values))
            }
        })
    }
}

/// Null means the same wherever it comes from.
fn without_nulls(value: Json) -> Option<Json> {
    match value {
        Json::Null => None,
        Json::Array(items) => Some(Json::Array(items.into_iter().filter_map(without_nulls).collect())),
        Json::Object(fields) => {
            let kept = fields.into_iter().filter_map(|(name, value)| Some((name, without_nulls(value)?)));
            Some(Json::Object(kept.collect()))
        }
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value(text: &str, parent: &Json) -> Result<Option<Json>, Failed> {
        let mut seen = Evaluation::new(false);
        seen.show(Name::Parent, parent);
        Template::text(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}")).value(&seen, "x")
    }

    #[test]
    fn a_leaf_keeps_its_type_and_text_around_it_makes_it_text() {
        let parent = json!({"n": 3, "yes": true, "s": "x", "map": {"a": null, "b": [1, null]}, "none": null});
        for (text, expected) in [
            ("plain", Some(json!("plain"))),
            ("", Some(json!(""))),
            ("${parent.n}", Some(json!(3))),
            ("${ parent.yes }", Some(json!(true))),
            ("${parent.map}", Some(json!({"b": [1]}))),
            ("${parent.none}", None),
            ("a-${parent.n}-${parent.s}${parent.yes}", Some(json!("a-3-xtrue"))),
            ("$${parent.n} ${parent.n}", Some(json!("${parent.n} 3"))),
            ("${'}' + \"}\" + '\\'}'}", Some(json!("}}'}"))),
            ("${ {'a': {'b': parent.n}}.a.b }", Some(json!(3))),
            ("$", Some(json!("$"))),
            ("$x {}", Some(json!("$x {}"))),
        ] {
            assert_eq!(value(text, &parent), Ok(expected), "{text}");
        }
        let Err(Failed { path, why: Unknown::Failed(why) }) = value("a${parent.map}", &parent) else { panic!() };
        assert_eq!((&*path, &*why), ("x", "`${parent.map}` is a mapping in the midst of text"));
    }

    #[test]
    fn an_expression_without_its_end_is_refused() {
        for text in ["${parent.n", "a ${'}'", "${ {"] {
            let wrong = Template::text(text).map(|_| ()).unwrap_err();
            assert!(wrong.contains("without its `}`"), "{text}: {wrong}");
        }
        assert!(Template::text("${parnt}").map(|_| ()).unwrap_err().starts_with("`${parnt}`: unknown name"));
    }

    proptest! {
        #[test]
        fn text_without_expressions_stays_as_it_is(text in "[^$]{0,40}") {
            prop_assert_eq!(value(&text, &json!({})), Ok(Some(Json::String(text.clone()))));
        }

        #[test]
        fn any_text_of_the_parent_goes_through_unchanged(text in ".{0,40}") {
            let parent = json!({"s": text});
            prop_assert_eq!(value("${parent.s}", &parent), Ok(Some(Json::String(text.clone()))));
            prop_assert_eq!(value("<${parent.s}>", &parent), Ok(Some(Json::String(format!("<{text}>")))));
        }
    }
}

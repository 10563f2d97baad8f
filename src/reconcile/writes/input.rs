//! What an object says that becomes a part of a request. Pure.
//!
//! kube writes names into paths and selectors as they are: `web/scale?x=` as a name asks for something else than an object of
//! that name, and `y,z=w` as the value of a label is two requirements. So these types hold only what is safe there.

use std::{fmt, ops::Deref};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{GroupVersion, GroupVersionKind, Selector};

use crate::config::{is_dns_label, is_subdomain};

/// No text of an object is quoted longer than this.
const QUOTED: usize = 80;
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// A text that cannot be a part of a request, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}: {rule}")]
pub(crate) struct Invalid {
    text: String,
    what: &'static str,
    rule: &'static str,
}

impl Invalid {
    fn new(text: &str, what: &'static str, rule: &'static str) -> Self {
        Self { text: text.chars().take(QUOTED).collect(), what, rule }
    }

    /// Without what was said, for messages that show no values.
    pub(crate) fn rule(&self) -> String {
        format!("is no {}: {}", self.what, self.rule)
    }
}

macro_rules! text {
    ($name:ident) => {
        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }
    };
}

/// The name of an object: one segment of a path that needs no escape.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectName(String);
text!(ObjectName);

impl ObjectName {
    /// A name that some type may have: besides those of [`dns`](Self::dns) such as `system:node`, as roles are called.
    ///
    /// # Errors
    /// If it would be more than one segment of a path, or another one than it says.
    pub(crate) fn new(text: &str) -> Result<Self, Invalid> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
        if (1..=NAME_MAX).contains(&text.len()) && text.chars().all(allowed) && !matches!(text, "." | "..") {
            return Ok(Self(text.to_owned()));
        }
        Err(Invalid::new(text, "name", "write 1 to 253 letters, digits, `-`, `.`, `_` and `:`"))
    }

    /// A name as almost every type has it: a subdomain as in RFC 1123.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn dns(text: &str) -> Result<Self, Invalid> {
        if is_subdomain(text) {
            return Ok(Self(text.to_owned()));
        }
        let rule =
            "write 1 to 253 lower-case letters, digits, `-` and `.`, each part with a letter or digit at both ends";
        Err(Invalid::new(text, "name", rule))
    }
}

/// The name of a namespace: a label as in RFC 1123.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NamespaceName(String);
text!(NamespaceName);

impl NamespaceName {
    /// # Errors
    /// If it is none.
    pub(crate) fn new(text: &str) -> Result<Self, Invalid> {
        if is_dns_label(text) {
            return Ok(Self(text.to_owned()));
        }
        let rule = "write 1 to 63 lower-case letters, digits and `-`, with a letter or digit at both ends";
        Err(Invalid::new(text, "namespace", rule))
    }
}

/// A type that is named by `apiVersion` and `kind`: its group and version are asked for by path.
///
/// # Errors
/// If one of the two cannot be what it says; the message begins with the field.
pub(crate) fn gvk(api_version: &str, kind: &str) -> Result<GroupVersionKind, String> {
    let parsed = api_version.parse::<GroupVersion>().ok();
    let valid = |it: &GroupVersion| (it.group.is_empty() || is_subdomain(&it.group)) && is_dns_label(&it.version);
    let Some(version) = parsed.filter(valid) else {
        let wrong = Invalid::new(api_version, "API version", "write one such as v1 or batch/v1");
        return Err(format!("apiVersion: {wrong}"));
    };
    if !is_kind(kind) {
        return Err(format!("kind: {}", Invalid::new(kind, "kind", "write one such as Deployment")));
    }
    Ok(version.with_kind(kind))
}

fn is_kind(text: &str) -> bool {
    (1..=LABEL_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric())
}

/// A selector all of whose keys and values are those of labels.
///
/// # Errors
/// If one is not, or an operator is unknown; the message begins with the field.
pub(crate) fn selector(selector: LabelSelector) -> Result<Selector, String> {
    for (key, value) in selector.match_labels.iter().flatten() {
        label_key(key).map_err(|wrong| format!("matchLabels: {wrong}"))?;
        label_value(value).map_err(|wrong| format!("matchLabels.{key}: {wrong}"))?;
    }
    for (number, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        label_key(&requirement.key).map_err(|wrong| format!("matchExpressions[{number}].key: {wrong}"))?;
        for value in requirement.values.iter().flatten() {
            label_value(value).map_err(|wrong| format!("matchExpressions[{number}].values: {wrong}"))?;
        }
    }
    Selector::try_from(selector).map_err(|error| format!("matchExpressions: {error}"))
}

/// The key of a label: a name, and a domain before it with a slash between.
///
/// # Errors
/// If it is none.
pub(crate) fn label_key(text: &str) -> Result<(), Invalid> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    if prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name) {
        return Ok(());
    }
    Err(Invalid::new(text, "key of a label", "write one such as app or example.com/app"))
}

/// The value of a label, which may be empty.
///
/// # Errors
/// If it is none.
pub(crate) fn label_value(text: &str) -> Result<(), Invalid> {
    if is_label_value(text) {
        return Ok(());
    }
    let rule = "write at most 63 letters, digits, `-`, `_` and `.`, with a letter or a digit at both ends";
    Err(Invalid::new(text, "value of a label", rule))
}

fn is_label_value(text: &str) -> bool {
    let ends = |end: Option<char>| end.is_none_or(|end| end.is_ascii_alphanumeric());
    text.len() <= LABEL_MAX
        && text.chars().all(|it| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.'))
        && ends(text.chars().next())
        && ends(text.chars().next_back())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BAD: [&str; 12] =
        ["", "web/scale?x=", "../../victim", "..", ".", "a/b", "a?b", "a#b", "a%2fb", "a b", "a,b=c", "a\u{e9}"];

    #[test]
    fn a_name_is_one_segment_of_a_path() {
        for bad in BAD {
            assert!(ObjectName::new(bad).is_err() && ObjectName::dns(bad).is_err(), "{bad:?}");
            assert!(NamespaceName::new(bad).is_err(), "{bad:?}");
        }
        let long = "a".repeat(254);
        let wrong = ObjectName::dns(&long).unwrap_err().to_string();
        assert!(ObjectName::new(&long).is_err() && wrong.len() < 250, "{wrong}");
        assert_eq!(&*ObjectName::new("system:Node_x").unwrap(), "system:Node_x");
        assert!(ObjectName::dns("system:node").is_err() && NamespaceName::new("a.b").is_err());
        assert_eq!(ObjectName::dns("web.v1").unwrap().to_string(), "web.v1");
        let wrong = ObjectName::dns("web/scale?x=").unwrap_err().to_string();
        assert!(wrong.starts_with("\"web/scale?x=\" is no name: write 1 to 253 lower-case letters"), "{wrong}");
    }

    #[test]
    fn a_type_is_asked_for_by_what_it_says() {
        for (version, kind) in [
            ("apps/v1/../../v2", "Deployment"),
            ("apps/../v1", "Deployment"),
            ("v1?x=", "Pod"),
            ("apps/", "Deployment"),
            ("", "Pod"),
            ("v1", "Pod/x"),
            ("v1", ""),
        ] {
            assert!(gvk(version, kind).is_err(), "{version} {kind}");
        }
        assert_eq!(gvk("apps/v1", "Deployment").unwrap(), GroupVersionKind::gvk("apps", "v1", "Deployment"));
        assert_eq!(gvk("v1", "Pod").unwrap(), GroupVersionKind::gvk("", "v1", "Pod"));
    }

    #[test]
    fn a_selector_asks_for_no_more_than_it_says() {
        for (selector_, field) in [
            (json!({"matchLabels": {"x": "y,z=w"}}), "matchLabels.x: \"y,z=w\" is no value of a label: "),
            (json!({"matchLabels": {"x,y": "z"}}), "matchLabels: \"x,y\" is no key of a label: "),
            (json!({"matchLabels": {"a/b/c": "z"}}), "matchLabels: "),
            (json!({"matchLabels": {"example.com/": "z"}}), "matchLabels: "),
            (
                json!({"matchExpressions": [{"key": "x", "operator": "In", "values": ["a)", "b"]}]}),
                "matchExpressions[0].values: ",
            ),
            (json!({"matchExpressions": [{"key": "x=y", "operator": "Exists"}]}), "matchExpressions[0].key: "),
            (json!({"matchExpressions": [{"key": "x", "operator": "Like"}]}), "matchExpressions: "),
        ] {
            let parsed = serde_json::from_value::<LabelSelector>(selector_.clone()).unwrap();
            let wrong = selector(parsed).unwrap_err();
            assert!(wrong.starts_with(field), "{selector_}: {wrong}");
        }
        let good = json!({"matchLabels": {"example.com/x": "", "app": "Web_1.0"}, "matchExpressions": [{"key": "y", "operator": "Exists"}]});
        assert!(selector(serde_json::from_value(good).unwrap()).is_ok());
    }
}

//! Values of a Secret that nobody says: made once, and kept as they are. Pure but for the random bytes, which are given.
//!
//! Such a value stands in one place only, the Secret. No expression sees it, so that none can carry it elsewhere: into a status,
//! an event, or a child that is no Secret. It is in no digest, and the plan that carries it does not show it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::ByteString;
use serde_json::{Map, Value, json};

use super::{Characters, Generate, Recipe};
use crate::reconcile::apply::{GENERATED, RENEWED_FOR};

const ALPHANUMERIC: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const HEX: &[u8] = b"0123456789abcdef";

/// The generated values of one child: those that it has, and those that are still to be made.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Values {
    carried: Map<String, Value>,
    to_make: BTreeMap<String, Recipe>,
}

/// It is shown by its keys.
impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let carried: Vec<_> = self.carried.keys().collect();
        f.debug_struct("Values").field("carried", &carried).field("to_make", &self.to_make).finish()
    }
}

impl Values {
    /// Of a child as it is there, if it is. All are made anew if something else was asked for when they were made; one that is
    /// missing, as in a Secret that is taken over, is made.
    pub(super) fn of(generate: &Generate, live: Option<&Value>) -> Self {
        let made_for = live.and_then(|live| live["metadata"]["annotations"][RENEWED_FOR].as_str());
        // A file that asks for nothing any more is no request.
        let is_renewed = made_for.zip(generate.renew.as_deref()).is_some_and(|(made_for, asked)| made_for != asked);
        let mut values = Self::default();
        for (key, recipe) in &generate.values {
            let there =
                live.and_then(|live| live["data"].get(key)).filter(|it| it.as_str().is_some_and(|it| !it.is_empty()));
            match there.filter(|_| !is_renewed) {
                Some(there) => _ = values.carried.insert(key.clone(), there.clone()),
                None => _ = values.to_make.insert(key.clone(), *recipe),
            }
        }
        values
    }

    /// Whether none is to be made.
    pub(super) fn is_complete(&self) -> bool {
        self.to_make.is_empty()
    }

    /// The object with the values that are there.
    pub(super) fn carried_by(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if !self.carried.is_empty() && !object["data"].is_object() {
            object["data"] = json!({});
        }
        for (key, value) in &self.carried {
            object["data"][key] = value.clone();
        }
        object
    }

    /// The object with all values. `random` fills a buffer; `None`: it could not.
    pub(super) fn all_in(&self, object: &Value, mut random: impl FnMut(&mut [u8]) -> Option<()>) -> Option<Value> {
        let mut object = self.carried_by(object);
        if !self.to_make.is_empty() && !object["data"].is_object() {
            object["data"] = json!({});
        }
        for (key, recipe) in &self.to_make {
            object["data"][key] = json!(ByteString(made(*recipe, &mut random)?));
        }
        Some(object)
    }
}

/// A value as the recipe has it, each character as likely as any other.
fn made(Recipe { length, characters }: Recipe, random: &mut dyn FnMut(&mut [u8]) -> Option<()>) -> Option<Vec<u8>> {
    let length = usize::from(length);
    let alphabet = match characters {
        Characters::Alphanumeric => ALPHANUMERIC,
        Characters::Hex => HEX,
        Characters::Bytes => {
            let mut bytes = vec![0; length];
            random(&mut bytes)?;
            return Some(bytes);
        }
    };
    // What is beyond the last whole round of the alphabet would favour its beginning.
    let fair = 256 - 256 % alphabet.len();
    let mut value = Vec::with_capacity(length);
    let mut bytes = vec![0; length];
    while value.len() < length {
        random(&mut bytes)?;
        let drawn = bytes.iter().map(|byte| usize::from(*byte)).filter(|byte| *byte < fair);
        value.extend(drawn.map(|byte| alphabet[byte % alphabet.len()]).take(length - value.len()));
    }
    Some(value)
}

/// What a child bears that has generated values.
pub(super) fn mark(annotations: &mut Value, generate: &Generate) {
    let keys: Vec<_> = generate.values.keys().map(String::as_str).collect();
    annotations[GENERATED] = json!(keys.join(","));
    if let Some(renew) = &generate.renew {
        annotations[RENEWED_FOR] = json!(renew);
    }
}

/// The object as expressions see it: without the values that were generated, as it says itself.
pub fn hide(object: Arc<Value>) -> Arc<Value> {
    let Some(keys) = object.pointer("/metadata/annotations").and_then(|all| all.get(GENERATED)?.as_str()) else {
        return object;
    };
    let keys: Vec<String> = keys.split(',').map(str::to_owned).collect();
    without(object, keys.iter().map(String::as_str))
}

/// The object without the values of these keys.
pub fn without<'a>(object: Arc<Value>, keys: impl Iterator<Item = &'a str>) -> Arc<Value> {
    let mut object = Arc::unwrap_or_clone(object);
    for key in keys {
        for field in ["data", "stringData"] {
            if let Some(data) = object.get_mut(field).and_then(Value::as_object_mut) {
                data.remove(key);
            }
        }
    }
    Arc::new(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate(renew: Option<&str>) -> Generate {
        let recipe = |length, characters| Recipe { length, characters };
        let values = [
            ("password", recipe(24, Characters::Alphanumeric)),
            ("token", recipe(16, Characters::Hex)),
            ("key", recipe(32, Characters::Bytes)),
        ];
        Generate {
            values: values.map(|(key, recipe)| (key.to_owned(), recipe)).into(),
            renew: renew.map(str::to_owned),
        }
    }

    fn counting() -> impl FnMut(&mut [u8]) -> Option<()> {
        let mut next = 0_u8;
        move |bytes| {
            for byte in bytes {
                *byte = next;
                next = next.wrapping_add(37);
            }
            Some(())
        }
    }

    fn decoded(object: &Value, key: &str) -> Vec<u8> {
        serde_json::from_value::<ByteString>(object["data"][key].clone()).unwrap().0
    }

    #[test]
    fn values_are_made_as_their_recipe_says_and_stay_as_they_are() {
        let empty = json!({"metadata": {"annotations": {}}, "data": {"user": "YQ=="}});
        let first = Values::of(&generate(None), None).all_in(&empty, counting()).unwrap();
        assert_eq!(first["data"]["user"], "YQ==");
        let password = decoded(&first, "password");
        assert!(password.len() == 24 && password.iter().all(u8::is_ascii_alphanumeric), "{password:?}");
        assert!(decoded(&first, "token").iter().all(u8::is_ascii_hexdigit));
        assert_eq!((decoded(&first, "token").len(), decoded(&first, "key").len()), (16, 32));
        let never = |_: &mut [u8]| -> Option<()> { panic!("nothing is to be made") };
        assert_eq!(Values::of(&generate(None), Some(&first)).all_in(&empty, never).unwrap()["data"], first["data"]);
        assert_eq!(Values::of(&generate(None), None).all_in(&empty, |_| None), None, "no chance, no Secret");
        // One that is missing is made, and the others stay.
        let mut less = first.clone();
        less["data"]["password"] = json!("");
        let again = Values::of(&generate(None), Some(&less)).all_in(&empty, counting()).unwrap();
        assert_eq!((&again["data"]["key"], &again["data"]["token"]), (&first["data"]["key"], &first["data"]["token"]));
        assert_eq!(decoded(&again, "password").len(), 24);
    }

    #[test]
    fn they_are_made_anew_when_something_else_is_asked_for_and_only_then() {
        let live = |renewed_for: Option<&str>| {
            let annotations = renewed_for.map_or(json!({}), |text| json!({RENEWED_FOR: text}));
            json!({"metadata": {"annotations": annotations}, "data": {"password": "YQ==", "token": "YQ==", "key": "YQ=="}})
        };
        for (before, now, is_new) in [
            (None, None, false),
            (None, Some("1"), false),
            (Some("1"), Some("1"), false),
            (Some("1"), Some("2"), true),
            (Some("1"), None, false),
        ] {
            let values = Values::of(&generate(now), Some(&live(before)));
            assert_eq!(values.carried.is_empty(), is_new, "{before:?} {now:?}");
        }
    }

    #[test]
    fn neither_what_is_shown_of_a_plan_nor_an_expression_has_a_value() {
        let mut annotations = json!({});
        mark(&mut annotations, &generate(Some("1")));
        assert_eq!(annotations, json!({GENERATED: "key,password,token", RENEWED_FOR: "1"}));
        let live = json!({"metadata": {"annotations": annotations}, "data": {"password": "geheim", "key": "geheim", "token": "geheim", "user": "YQ=="}});
        assert!(!format!("{:?}", Values::of(&generate(Some("1")), Some(&live))).contains("geheim"));
        let seen = hide(Arc::new(live));
        assert_eq!(seen["data"], json!({"user": "YQ=="}));
        let plain = Arc::new(json!({"data": {"password": "x"}}));
        assert_eq!(hide(Arc::clone(&plain)), plain);
    }
}

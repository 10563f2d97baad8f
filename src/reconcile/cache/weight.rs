//! What an object weighs: its bytes as JSON, which is what it takes to keep it, more or less. Pure.

use std::io;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;

/// The whole object once more, as `kubectl apply` keeps it.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Takes off what no reconciler reads, and no write of ours carries: who owns which field, and the copy that kubectl keeps.
pub(crate) fn trim(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    trim_annotations(meta);
}

/// Takes off the copy that kubectl keeps.
pub(crate) fn trim_annotations(meta: &mut ObjectMeta) {
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty() {
            meta.annotations = None;
        }
    }
}

/// The bytes of that as JSON. They are counted and not written.
pub(crate) fn weigh<T: Serialize>(value: &T) -> u64 {
    let mut counter = Counter(0);
    match serde_json::to_writer(&mut counter, value) {
        Ok(()) => counter.0,
        // What cannot be said in JSON did not come from the API server.
        Err(_) => u64::MAX,
    }
}

struct Counter(u64);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A size as people read it.
pub(crate) fn shown(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ => format!("{} KiB", bytes.div_ceil(1024)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_weighs_what_it_takes_as_text() {
        for value in [json!({}), json!({"a": [1, "\n\u{1}\u{1f600}"], "b": null})] {
            assert_eq!(weigh(&value), value.to_string().len() as u64);
        }
    }

    #[test]
    fn what_kubectl_and_the_api_server_keep_beside_an_object_is_taken_off() {
        let of = |annotations| -> ObjectMeta {
            let fields = json!([{"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}}]);
            serde_json::from_value(json!({"name": "x", "annotations": annotations, "managedFields": fields})).unwrap()
        };
        let trimmed = |annotations| {
            let mut meta = of(annotations);
            trim(&mut meta);
            serde_json::to_value(meta).unwrap()
        };
        assert_eq!(trimmed(json!({LAST_APPLIED: "{}"})), json!({"name": "x"}));
        assert_eq!(trimmed(json!({LAST_APPLIED: "{}", "a": "b"})), json!({"name": "x", "annotations": {"a": "b"}}));
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_says_them() {
        for (bytes, text) in
            [(5, "5 bytes"), (1024, "1 KiB"), (1025, "2 KiB"), (1 << 20, "1 MiB"), (3 << 19, "1536 KiB")]
        {
            assert_eq!(shown(bytes), text);
        }
    }
}

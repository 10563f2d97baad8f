//! An error in one line.

use std::error::Error;

/// An error with its causes, each once. A refusal ends it with code and message: kube would add the whole Status, twice.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            words.push(format!("{} {}", status.code, status.message));
            break;
        }
        let said = error.to_string();
        // kube's errors repeat their source.
        if !words.iter().any(|before| before.contains(&said)) {
            words.push(said);
        }
        next = error.source();
    }
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_told_with_its_causes_and_a_refusal_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("failed to list")]
        struct Outer(#[source] kube::Error);
        let status = serde_json::from_value(json!({"code": 403, "reason": "Forbidden", "message": "may not"})).unwrap();
        assert_eq!(describe(&Outer(kube::Error::Api(Box::new(status)))), "failed to list: 403 may not");
        let service = kube::Error::Service(Box::new(io::Error::other("gone")));
        assert_eq!(describe(&Outer(service)), "failed to list: ServiceError: gone");
    }
}

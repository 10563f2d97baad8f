//! What a container's process is started with: expansion, downward API, and the rewriting that replaces namespaces.
//!
//! Pure: strings and objects in, strings out.

use k8s_openapi::api::core::v1::Pod;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Replaces `$(NAME)` by the variable's value. An unknown name stays as it is; `$$(NAME)` is an escape.
pub(crate) fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            expanded.push('$');
            rest = escaped;
        } else if let Some((name, behind)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.get(name) {
                Some(value) => expanded.push_str(value),
                None => {
                    expanded.push_str("$(");
                    expanded.push_str(name);
                    expanded.push(')');
                }
            }
            rest = behind;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded.push_str(rest);
    expanded
}

/// A pod's field by its downward API path; nothing when there is no such field.
pub(crate) fn field(pod: &Pod, address: &str, path: &str) -> Option<String> {
    let keyed = |prefix: &str, map: &Option<BTreeMap<String, String>>| {
        let key = path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")?;
        // An absent label is an empty string, as the kubelet has it.
        Some(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    let listed = |map: &Option<BTreeMap<String, String>>| {
        map.iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
    };
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    match path {
        "metadata.name" => metadata.name.clone(),
        "metadata.namespace" => metadata.namespace.clone(),
        "metadata.uid" => metadata.uid.clone(),
        "metadata.labels" => Some(listed(&metadata.labels)),
        "metadata.annotations" => Some(listed(&metadata.annotations)),
        "spec.nodeName" => spec.and_then(|spec| spec.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|spec| spec.service_account_name.clone()),
        "status.podIP" | "status.podIPs" => Some(address.to_owned()),
        "status.hostIP" | "status.hostIPs" => Some("127.0.0.1".to_owned()),
        _ => {
            keyed("metadata.labels", &metadata.labels).or_else(|| keyed("metadata.annotations", &metadata.annotations))
        }
    }
}

/// Replaces paths under a mount by the folder that stands in for it, and `0.0.0.0` by the pod's address.
pub(crate) fn localise(text: &str, mounts: &[(String, PathBuf)], address: &str) -> String {
    let mut mounts: Vec<_> = mounts.iter().collect();
    // The longest first: a mount may lie inside another.
    mounts.sort_by_key(|(mount, _)| std::cmp::Reverse(mount.len()));
    let mut local = String::with_capacity(text.len());
    let mut rest = text;
    'text: while let Some(next) = rest.chars().next() {
        let before = local.chars().next_back();
        for (mount, folder) in &mounts {
            if let Some(behind) = rest.strip_prefix(mount.as_str())
                && !before.is_some_and(in_path)
                && !behind.chars().next().is_some_and(|after| after != '/' && in_path(after))
            {
                local.push_str(&folder.display().to_string());
                rest = behind;
                continue 'text;
            }
        }
        if let Some(behind) = rest.strip_prefix("0.0.0.0")
            && !before.is_some_and(|before| before.is_ascii_digit() || before == '.')
            && !behind.starts_with(|after: char| after.is_ascii_digit() || after == '/' || after == '.')
        {
            local.push_str(address);
            rest = behind;
            continue;
        }
        local.push(next);
        rest = &rest[next.len_utf8()..];
    }
    local
}

/// The program and arguments of a container. An entrypoint named like the image's program means that program.
pub(crate) fn command(program: &Path, command: &[String], arguments: &[String]) -> (PathBuf, Vec<String>) {
    let Some((first, more)) = command.split_first() else {
        return (program.to_owned(), arguments.to_vec());
    };
    let named = Path::new(first);
    let program = if named.file_name() == program.file_name() { program.to_owned() } else { named.to_owned() };
    (program, more.iter().chain(arguments).cloned().collect())
}

/// A quantity such as `500m`, `2` or `128Mi`, in units; nothing when it cannot be read.
pub(crate) fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: &[(&str, f64)] = &[
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("m", 0.001),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
    ];
    let (number, scale) = SUFFIXES
        .iter()
        .find_map(|(suffix, scale)| text.strip_suffix(suffix).map(|number| (number, *scale)))
        .unwrap_or((text, 1.0));
    number.parse::<f64>().ok().map(|number| number * scale)
}

fn in_path(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '/' | '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_as_in_a_container() {
        let variables = BTreeMap::from([("NAME".to_owned(), "pod-1".to_owned())]);
        for (text, expected) in [
            ("--id=$(NAME)", "--id=pod-1"),
            ("$(NAME)$(NAME)", "pod-1pod-1"),
            ("$(OTHER)", "$(OTHER)"),
            ("$$(NAME)", "$(NAME)"),
            ("cost: 5$", "cost: 5$"),
            ("$HOME $(NAME", "$HOME $(NAME"),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }

    #[test]
    fn mounts_and_addresses_become_local() {
        let mounts = [
            ("/etc/leasehold".to_owned(), PathBuf::from("/tmp/a")),
            ("/etc/leasehold/compose".to_owned(), PathBuf::from("/tmp/b")),
        ];
        for (text, expected) in [
            ("/etc/leasehold/leasehold.yaml", "/tmp/a/leasehold.yaml"),
            ("--config=/etc/leasehold", "--config=/tmp/a"),
            ("/etc/leasehold/compose/x:/etc/leasehold", "/tmp/b/x:/tmp/a"),
            ("/etc/leasehold-other", "/etc/leasehold-other"),
            ("/mnt/etc/leasehold", "/mnt/etc/leasehold"),
            ("--http=0.0.0.0:8080", "--http=127.9.9.9:8080"),
            ("10.0.0.0:1 0.0.0.0/0 0.0.0.0", "10.0.0.0:1 0.0.0.0/0 127.9.9.9"),
        ] {
            assert_eq!(localise(text, &mounts, "127.9.9.9"), expected, "{text}");
        }
    }

    #[test]
    fn an_entrypoint_with_the_programs_name_is_the_program() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let program = Path::new("/target/leasehold");
        assert_eq!(command(program, &[], &words(&["run"])), (program.to_owned(), words(&["run"])));
        assert_eq!(
            command(program, &words(&["/usr/bin/leasehold", "run"]), &words(&["-v"])),
            (program.to_owned(), words(&["run", "-v"]))
        );
        assert_eq!(command(program, &words(&["sleep"]), &words(&["1"])), ("sleep".into(), words(&["1"])));
    }

    #[test]
    fn quantities_are_read() {
        for (text, expected) in [("2", Some(2.0)), ("500m", Some(0.5)), ("1Ki", Some(1024.0)), ("x", None)] {
            assert_eq!(quantity(text), expected, "{text}");
        }
    }

    #[test]
    fn fields_are_found_by_path() {
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.labels = Some(BTreeMap::from([("pod-template-hash".to_owned(), "abc".to_owned())]));
        for (path, expected) in [
            ("metadata.name", Some("p")),
            ("metadata.labels['pod-template-hash']", Some("abc")),
            ("metadata.labels['none']", Some("")),
            ("status.podIP", Some("127.1.1.1")),
            ("spec.unknown", None),
        ] {
            assert_eq!(field(&pod, "127.1.1.1", path).as_deref(), expected, "{path}");
        }
    }
}

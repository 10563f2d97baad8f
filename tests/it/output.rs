//! What a command does when its output cannot be written: it says so, or ends without a word if the reader has gone. It never
//! panics.

use std::{
    fs::{self, File},
    io::pipe,
    path::Path,
    process::{Command, Output, Stdio},
};

/// Every command that prints without a cluster; those that need one print by the same function.
const PRINTING: [&[&str]; 19] = [
    &["--help"],
    &["--version"],
    &["help", "run"],
    &["run", "--help"],
    &["check", "-f", "config"],
    &["check", "-f", "config", "-o", "json"],
    &["check", "-f", "src", "-o", "json"],
    &["render", "-f", "config", "--parent", "config/samples/webapp.yaml"],
    &["render", "-f", "config", "--parent", "config/samples/webapp.yaml", "-o", "json"],
    &["rbac", "-f", "config"],
    &["policies", "-f", "config"],
    &["crds"],
    &["schema"],
    &["schema", "composition"],
    &["schema", "values"],
    &["completions", "bash"],
    &["completions", "zsh"],
    &["completions", "fish"],
    &["completions", "elvish"],
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(arguments: &[&str], output: impl Into<Stdio>) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leasehold"));
    let said = command.current_dir(root()).args(arguments).stdout(output).stderr(Stdio::piped()).spawn();
    let said = said.unwrap().wait_with_output().unwrap();
    let errors = String::from_utf8(said.stderr.clone()).unwrap();
    (said, errors)
}

#[test]
fn a_full_disk_is_an_error_that_says_so() {
    for arguments in PRINTING {
        let (said, errors) = run(arguments, File::options().write(true).open("/dev/full").unwrap());
        assert_eq!(said.status.code(), Some(1), "{arguments:?}: {errors}");
        let expected = "error: failed to write to standard output: No space left on device";
        assert!(errors.lines().any(|line| line.starts_with(expected)), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_reader_that_has_gone_is_nothing_to_tell() {
    for arguments in PRINTING {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let (said, errors) = run(arguments, writer);
        assert_eq!((said.status.code(), errors.as_str()), (Some(1), ""), "{arguments:?}");
    }
}

/// What the tests above see of some commands holds for all of them.
#[test]
fn all_commands_print_by_one_function() {
    fn look(folder: &Path) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() {
                look(&path);
            } else if !["out.rs", "screen.rs"].iter().any(|it| name == *it) {
                let text = fs::read_to_string(&path).unwrap();
                assert!(!text.contains("stdout()"), "{} prints by itself: use cli::out", path.display());
            }
        }
    }
    look(&root().join("src/cli"));
}

//! Standard error that takes nothing: the process goes on, and ends.

use std::{
    io::{ErrorKind, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

/// One end of a connection that is full, and the other that is never read.
fn full() -> (OwnedFd, UnixStream) {
    let (mut full, unread) = UnixStream::pair().unwrap();
    full.set_nonblocking(true).unwrap();
    loop {
        match full.write(&[b'.'; 4096]) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    full.set_nonblocking(false).unwrap();
    (full.into(), unread)
}

#[test]
fn a_full_standard_error_keeps_no_replica_and_no_command_from_ending() {
    for (arguments, code) in [
        // Logs what it listens on, and finds no cluster to talk to.
        (["run", "--http", "127.0.0.1:0", "--config", "config"].as_slice(), 1),
        (&["check", "-f", "there/is/no/such/file.yaml"], 2),
    ] {
        let (stderr, _unread) = full();
        let mut replica = Command::new(env!("CARGO_BIN_EXE_leasehold"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .env("KUBECONFIG", "there/is/no/such/kubeconfig")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut looks = 0;
        let status = loop {
            match replica.try_wait().unwrap() {
                Some(status) => break status,
                None if looks < 300 => sleep(Duration::from_millis(100)),
                None => {
                    replica.kill().unwrap();
                    panic!("{arguments:?} does not end");
                }
            }
            looks += 1;
        };
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn the_address_that_the_endpoints_have_got_is_logged() {
    let said = Command::new(env!("CARGO_BIN_EXE_leasehold"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["run", "--http", "127.0.0.1:0", "--config", "config", "--log-format", "json"])
        .env("KUBECONFIG", "there/is/no/such/kubeconfig")
        .output()
        .unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    let port =
        said.split_once("\"address\":\"127.0.0.1:").and_then(|(_, rest)| rest.split_once('"')).map(|(port, _)| port);
    let port: u16 = port.unwrap_or_else(|| panic!("no address: {said}")).parse().unwrap();
    assert_ne!(port, 0, "{said}");
    assert!(said.contains("no cluster to talk to"), "the last words follow the lines: {said}");
}

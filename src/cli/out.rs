//! Standard output: what a command prints.

use std::io::{self, Write};

/// Where a command prints. An error says that it is of the output, so that it is not taken for one of a file or a connection.
pub(super) fn out() -> impl Write {
    Out(io::stdout())
}

struct Out(io::Stdout);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(failed)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(failed)
    }
}

/// The kind stays: a reader that has closed the pipe is nothing to tell.
pub(super) fn failed(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("failed to write to standard output: {error}"))
}

//! cel-go in a process of its own, which evaluates expressions as Kubernetes does.

use std::{
    io::{BufRead, BufReader, BufWriter, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A running cel-go. Dropping it ends it.
#[derive(Debug)]
pub struct CelGo {
    process: Child,
    input: BufWriter<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl CelGo {
    /// Starts it; builds it first, if it is not there. Blocks.
    ///
    /// # Errors
    /// When it cannot be built or started.
    pub fn start() -> Result<Self> {
        let program = crate::binaries::cel_go()?;
        let mut process = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {}", program.display()))?;
        let input = BufWriter::new(process.stdin.take().context("no input")?);
        let output = BufReader::new(process.stdout.take().context("no output")?);
        Ok(Self { process, input, output })
    }

    /// Asks for the value of an expression. Some may be asked for before the first answer is read.
    ///
    /// # Errors
    /// When it has ended.
    pub fn ask(&mut self, expression: &str, variables: &Value) -> Result<()> {
        let question = json!({"expression": expression, "variables": variables});
        writeln!(self.input, "{question}").context("cel-go reads no more")
    }

    /// The next answer: `value` with its type, `error`, or `refused`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn answer(&mut self) -> Result<Value> {
        self.input.flush()?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("cel-go answers {line:?}"))
    }
}

impl Drop for CelGo {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

//! A picture that stays where it is while it changes.

use std::io::{self, IsTerminal as _, Write as _};

/// The other screen, without a cursor; and back.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";

/// The screen of a terminal, until this is dropped.
pub(super) struct Screen(());

impl Screen {
    /// `None`: standard output is no terminal.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        if !io::stdout().is_terminal() {
            return Ok(None);
        }
        write!(io::stdout(), "{ENTER}")?;
        Ok(Some(Self(())))
    }

    pub(super) fn draw(&self, text: &str) -> io::Result<()> {
        let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
        let (rows, columns) = size.map_or((24, 80), |size| (usize::from(size.ws_row), usize::from(size.ws_col)));
        let mut out = io::stdout().lock();
        out.write_all(frame(text, rows.max(2), columns.max(20)).as_bytes())?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal is gone if this fails.
        let _ = write!(io::stdout(), "{LEAVE}");
        let _ = io::stdout().flush();
    }
}

/// Writes each line over the one that was there, at once where the terminal can: nothing is cleared before, so nothing flickers.
fn frame(text: &str, rows: usize, columns: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut frame = "\u{1b}[?2026h\u{1b}[H".to_owned();
    let shown = if lines.len() > rows { rows - 1 } else { lines.len() };
    for (number, line) in lines[..shown].iter().enumerate() {
        if number > 0 {
            frame.push_str("\r\n");
        }
        frame.extend(line.chars().take(columns));
        frame.push_str("\u{1b}[K");
    }
    if shown < lines.len() {
        let more: String = format!("… {} more lines", lines.len() - shown).chars().take(columns).collect();
        frame.push_str(&format!("\r\n{more}\u{1b}[K"));
    }
    frame.push_str("\u{1b}[J\u{1b}[?2026l");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_overwrites_line_by_line_and_fits_the_screen() {
        let drawn = frame("one\ntwo and more\n", 5, 5);
        assert_eq!(drawn, "\u{1b}[?2026h\u{1b}[Hone\u{1b}[K\r\ntwo a\u{1b}[K\u{1b}[J\u{1b}[?2026l");
        let drawn = frame(&"x\n".repeat(100), 10, 80);
        assert_eq!(drawn.matches("\r\n").count(), 9, "it does not scroll");
        assert!(drawn.contains("… 91 more lines"), "{drawn}");
    }
}

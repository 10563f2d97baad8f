//! Text from outside, as text: what a name says moves no cursor and colours nothing.

/// Characters of a name in a table, unless all of it was asked for.
const NAME: usize = 63;
/// Characters of a sentence.
const SENTENCE: usize = 600;

/// Whether a terminal shows it, where it stands, and does nothing else.
fn is_plain(character: char) -> bool {
    let turns =
        matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !character.is_control() && !turns
}

/// What would move the cursor, hide or turn text is written as its number.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        if is_plain(character) {
            plain.push(character);
        } else {
            plain.extend(character.escape_unicode());
        }
    }
    plain
}

fn cut(text: &str, most: usize) -> String {
    let text = plain(text);
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A name, as much of it as fits into a table.
pub(super) fn name(text: &str) -> String {
    cut(text, NAME)
}

/// A sentence.
pub(super) fn sentence(text: &str) -> String {
    cut(text, SENTENCE)
}

/// JSON that has no character which a terminal acts on.
pub(super) fn json(value: &serde_json::Value, indented: bool) -> String {
    let text = if indented { format!("{value:#}") } else { value.to_string() };
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        if character == '\n' || is_plain(character) {
            safe.push(character);
        } else {
            // All that are not plain are within the first plane, which four digits reach.
            safe.push_str(&format!("\\u{:04x}", u32::from(character)));
        }
    }
    safe
}

/// How long, in the two greatest units that say something.
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "-".to_owned();
    }
    if seconds < 1.0 {
        return format!("{:.0}ms", seconds * 1000.0);
    }
    if seconds < 10.0 {
        return format!("{seconds:.1}s");
    }
    // A kind that was led for longer than a hundred years is led for long.
    let whole = seconds.min(3e9) as u64;
    let (days, hours, minutes, rest) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    let two = |(greater, one): (u64, &str), (lesser, other): (u64, &str)| match lesser {
        0 => format!("{greater}{one}"),
        _ => format!("{greater}{one}{lesser}{other}"),
    };
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => two((minutes, "m"), (rest, "s")),
        (0, _, _) => two((hours, "h"), (minutes, "m")),
        _ => two((days, "d"), (hours, "h")),
    }
}

/// Bytes, in mebibytes.
pub(super) fn memory(bytes: u64) -> String {
    format!("{}Mi", bytes.div_ceil(1 << 20))
}

/// So many a second, with two digits that say something.
pub(super) fn rate(a_second: f64) -> String {
    match a_second {
        rate if rate >= 10.0 => format!("{rate:.0}/s"),
        rate if rate >= 1.0 => format!("{rate:.1}/s"),
        rate if rate > 0.0 => format!("{:.1}/min", rate * 60.0),
        _ => "0".to_owned(),
    }
}

/// Columns as wide as their widest cell, and two spaces between them.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|title| title.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head: Vec<_> = head.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_would_move_the_cursor_is_written_as_text() {
        assert_eq!(plain("a\u{1b}[2Jb\nc\u{9b}m<b>x</b>"), "a\\u{1b}[2Jb\\u{a}c\\u{9b}m<b>x</b>");
        assert_eq!(plain("evil\u{202e}txt\u{200b}é"), "evil\\u{202e}txt\\u{200b}é");
        assert_eq!(name(&"x".repeat(100)).chars().count(), NAME + 1);
        let document = json!({"a\u{1b}": "\u{9b}\u{202e}\u{7f}", "b": "é"});
        let text = json(&document, true);
        assert!(text.chars().all(|it| it == '\n' || is_plain(it)), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), document, "it says the same");
    }

    #[test]
    fn times_rates_and_sizes_are_short() {
        let cases = [
            (0.0078, "8ms"),
            (4.26, "4.3s"),
            (59.9, "59s"),
            (60.0, "1m"),
            (754.0, "12m34s"),
            (7200.0, "2h"),
            (90_061.0, "1d1h"),
            (f64::INFINITY, "-"),
        ];
        for (seconds, said) in cases {
            assert_eq!(duration(seconds), said);
        }
        assert_eq!((memory(1), memory(21 << 20)), ("1Mi".to_owned(), "21Mi".to_owned()));
        assert_eq!([0.0, 0.05, 1.25, 123.4].map(rate), ["0", "3.0/min", "1.2/s", "123/s"]);
    }

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_last_word() {
        let rows = [vec!["é".to_owned(), "1".to_owned()], vec!["long".to_owned(), String::new()]];
        assert_eq!(table(&["A", "NUMBER"], &rows), "A     NUMBER\né     1\nlong\n");
    }
}

//! Numbers of bytes as Kubernetes writes them: `64Ki`, `16Mi`, `1G`, `65536`.

const UNITS: [(&str, u64); 7] =
    [("", 1), ("k", 1000), ("M", 1_000_000), ("G", 1_000_000_000), ("Ki", 1 << 10), ("Mi", 1 << 20), ("Gi", 1 << 30)];

/// Reads a whole number of units; `None` if it is none.
pub(super) fn parse(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, bytes) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(bytes)
}

/// Writes it as a file would have it.
pub(super) fn show(bytes: u64) -> String {
    let (unit, size) = ["Gi", "Mi", "Ki"]
        .into_iter()
        .zip([1_u64 << 30, 1 << 20, 1 << 10])
        .find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size))
        .unwrap_or(("", 1));
    format!("{}{unit}", bytes / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_quantities_and_shown_as_such() {
        for (text, bytes) in [("64Ki", 65536), ("16Mi", 16 << 20), ("1Gi", 1 << 30), ("500", 500), ("0", 0)] {
            assert_eq!((parse(text), show(bytes).as_str()), (Some(bytes), text));
        }
        for (text, bytes) in [("5k", 5000), ("2M", 2_000_000), ("1G", 1_000_000_000)] {
            assert_eq!(parse(text), Some(bytes));
        }
        for bad in ["", "Ki", "-1Ki", "1.5Mi", "1KB", "1 Ki", "1ki", "18446744073709551615Ki", "1Kii"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}

//! Sizes, rates and durations as PostgreSQL's users write and read them: MB is 1024 × 1024.

use std::time::Duration;

const KB: u64 = 1024;
const MB: u64 = 1024 * KB;
const GB: u64 = 1024 * MB;
const TB: u64 = 1024 * GB;

/// `12 bytes`, `640 kB`, `17 MB`, as `pg_size_pretty`.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} bytes"),
        _ if bytes < 10 * MB => format!("{} kB", rounded(bytes, KB)),
        _ if bytes < 10 * GB => format!("{} MB", rounded(bytes, MB)),
        _ if bytes < 10 * TB => format!("{} GB", rounded(bytes, GB)),
        _ => format!("{} TB", rounded(bytes, TB)),
    }
}

fn rounded(bytes: u64, unit: u64) -> u64 {
    bytes.saturating_add(unit / 2) / unit
}

/// `850 ms`, `12.3 s`, `4 min 05 s`, `3 h 12 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Parses a duration with PostgreSQL's units: `500ms`, `90s`, `10min`, `2h`, `1d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("\"{text}\" is not a duration: write a number and ms, s, min, h or d, such as 10min");
    let (number, unit) = split_number(text).ok_or_else(wrong)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(wrong)
}

/// Parses `--max-rate` as pg_basebackup does: kilobytes a second, or with a suffix `k` or `M`; 32 kB/s to
/// 1024 MB/s. Gives kilobytes a second.
pub fn parse_rate(text: &str) -> Result<u32, String> {
    let wrong = || {
        format!(
            "\"{text}\" is not a transfer rate: write kilobytes a second, or add k or M, from 32k to 1024M"
        )
    };
    let (number, unit) = split_number(text).ok_or_else(wrong)?;
    let kilobytes = match unit {
        "" | "k" => number,
        "M" => number.checked_mul(1024).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    u32::try_from(kilobytes).ok().filter(|rate| (32..=1_048_576).contains(rate)).ok_or_else(wrong)
}

/// Parses a number of megabytes.
pub fn parse_megabytes(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("\"{text}\" is not a size: write a number of megabytes from 1 to 16384, such as 128");
    let (number, unit) = split_number(text).ok_or_else(wrong)?;
    let megabytes = match unit {
        "" | "MB" => number,
        "GB" => number.checked_mul(1024).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    (1..=16_384).contains(&megabytes).then_some(megabytes).ok_or_else(wrong)
}

/// `10min` → `(10, "min")`.
fn split_number(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end)?;
    Some((digits.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_pg_size_pretty_prints_them() {
        assert_eq!(size(10_239), "10239 bytes");
        assert_eq!(size(10_240), "10 kB");
        assert_eq!(size(17 * MB + MB / 2), "18 MB");
        assert_eq!(size(u64::MAX), "16777215 TB");
    }

    #[test]
    fn durations_need_a_unit_and_take_postgresqls() {
        assert_eq!(parse_duration("10min"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("500 ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1d"), Ok(Duration::from_secs(86_400)));
        for wrong in ["", "10", "min", "-1s", "1m", "1 year", "99999999999999999999d", "9999999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_have_pg_basebackups_bounds() {
        assert_eq!(parse_rate("32"), Ok(32));
        assert_eq!(parse_rate("100k"), Ok(100));
        assert_eq!(parse_rate("1024M"), Ok(1_048_576));
        for wrong in ["31", "1025M", "", "k", "1G", "-5", "99999999999999999999M"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_read_in_the_unit_that_fits() {
        assert_eq!(duration(Duration::from_millis(12)), "12 ms");
        assert_eq!(duration(Duration::from_secs(245)), "4 min 05 s");
        assert_eq!(duration(Duration::from_secs(3 * 3600 + 720)), "3 h 12 min");
    }
}

//! Times as PostgreSQL's users write them, and as `TimestampTz` (microseconds since 2000-01-01 UTC).

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// 2000-01-01 00:00:00 UTC in microseconds of the Unix epoch (`POSTGRES_EPOCH_JDATE`, datatype/timestamp.h).
const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

/// Parses a point in time: `2026-11-22 14:02:59+01`, `2026-11-22T14:02:59.5Z`, `2026-11-22 14:02`,
/// `2026-11-22 14:02:59 Europe/Berlin`. Without an offset it is `local` time.
///
/// A local time that does not exist, or exists twice, is refused: an offset settles it.
pub fn parse(text: &str, local: &TimeZone) -> Result<i64, String> {
    let wrong = |why: &str| {
        format!(
            "\"{text}\" is not a time ({why}): write it as 2026-11-22 14:02:59+01, or without an offset for local time"
        )
    };
    let text_only = text.trim();
    let (date, rest) = text_only.split_at_checked(10).ok_or_else(|| wrong("no date"))?;
    let date = parse_date(date).ok_or_else(|| wrong("no date of the form YYYY-MM-DD"))?;
    let rest = match rest.strip_prefix(['T', 't', ' ']) {
        Some(rest) => rest.trim_start(),
        None if rest.is_empty() => "",
        None => return Err(wrong("no space or T behind the date")),
    };
    let end = rest.find(|c: char| !(c.is_ascii_digit() || c == ':' || c == '.')).unwrap_or(rest.len());
    let (clock, zone) = rest.split_at_checked(end).ok_or_else(|| wrong("no time of day"))?;
    let clock = match clock {
        "" if zone.is_empty() => Time::midnight(),
        _ => parse_clock(clock).ok_or_else(|| wrong("no time of day of the form HH:MM:SS"))?,
    };
    let moment = date.to_datetime(clock);
    let zone = parse_zone(zone.trim(), local)
        .ok_or_else(|| wrong("an unknown time zone; an offset such as +01 always works"))?;
    timestamp(moment, &zone).map_err(|why| wrong(&why))
}

fn timestamp(moment: DateTime, zone: &TimeZone) -> Result<i64, String> {
    let ambiguous = zone.to_ambiguous_timestamp(moment);
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { .. } => {}
        AmbiguousOffset::Gap { .. } => {
            return Err("the clocks were put forward over it; add an offset".to_owned());
        }
        AmbiguousOffset::Fold { before, after } => {
            return Err(format!("the clocks were put back over it; add an offset, {before} or {after}"));
        }
    }
    let timestamp = ambiguous.unambiguous().map_err(|_| "out of range".to_owned())?;
    timestamp.as_microsecond().checked_sub(POSTGRES_EPOCH).ok_or_else(|| "out of range".to_owned())
}

fn parse_date(text: &str) -> Option<Date> {
    let mut parts = text.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = parts.next().is_none() && year.len() == 4 && month.len() == 2 && day.len() == 2;
    if !whole {
        return None;
    }
    Date::new(digits(year)?.try_into().ok()?, digits(month)?.try_into().ok()?, digits(day)?.try_into().ok()?)
        .ok()
}

fn parse_clock(text: &str) -> Option<Time> {
    let (clock, fraction) = match text.split_once('.') {
        Some((clock, fraction)) => (clock, nanoseconds(fraction)?),
        None => (text, 0),
    };
    let parts: Vec<&str> = clock.split(':').collect();
    let (hour, minute, second) = match parts.as_slice() {
        [hour, minute] if fraction == 0 && !text.contains('.') => (*hour, *minute, "00"),
        [hour, minute, second] => (*hour, *minute, *second),
        _ => return None,
    };
    let number = |part: &str| (part.len() == 2).then(|| digits(part)).flatten()?.try_into().ok();
    Time::new(number(hour)?, number(minute)?, number(second)?, fraction).ok()
}

/// Up to six digits, as PostgreSQL keeps microseconds.
fn nanoseconds(fraction: &str) -> Option<i32> {
    if fraction.is_empty() || fraction.len() > 6 {
        return None;
    }
    let padded = format!("{fraction:0<9}");
    digits(&padded)?.try_into().ok()
}

fn digits(text: &str) -> Option<u32> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// `""` is local, `Z`, `UTC` and `GMT` are themselves, `+HH`, `+HH:MM`, `+HHMM`, `+HH:MM:SS` are offsets east of
/// Greenwich. Of names only those with a slash are taken: abbreviations mean different things to PostgreSQL and
/// to the time zone database.
fn parse_zone(text: &str, local: &TimeZone) -> Option<TimeZone> {
    if text.is_empty() {
        return Some(local.clone());
    }
    if ["z", "utc", "gmt"].contains(&text.to_ascii_lowercase().as_str()) {
        return Some(TimeZone::UTC);
    }
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ if text.contains('/') => return TimeZone::get(text).ok(),
        _ => return None,
    };
    let compact: String = rest.split(':').collect();
    let well_formed = match rest.len() {
        1 | 2 | 4 => !rest.contains(':'),
        5 => rest.as_bytes().get(2) == Some(&b':'),
        8 => rest.as_bytes().get(2) == Some(&b':') && rest.as_bytes().get(5) == Some(&b':'),
        _ => false,
    };
    if !well_formed {
        return None;
    }
    let part = |from: usize, to: usize| digits(compact.get(from..to.min(compact.len())).unwrap_or("0"));
    let number = |text: Option<u32>| text.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
    let hours = number(if compact.len() <= 2 { digits(&compact) } else { part(0, 2) })?;
    let minutes = if compact.len() >= 4 { number(part(2, 4))? } else { 0 };
    let seconds = if compact.len() >= 6 { number(part(4, 6))? } else { 0 };
    if hours > 15 || minutes > 59 || seconds > 59 {
        return None;
    }
    let offset = Offset::from_seconds(sign * (hours * 3600 + minutes * 60 + seconds)).ok()?;
    Some(TimeZone::fixed(offset))
}

/// A `TimestampTz` as RFC 3339 with its offset in `zone`; what lies outside of jiff's range as a number.
pub fn format(time: i64, zone: &TimeZone) -> String {
    let unix = time.checked_add(POSTGRES_EPOCH).and_then(|micros| Timestamp::from_microsecond(micros).ok());
    match unix {
        Some(timestamp) => timestamp.display_with_offset(zone.to_offset(timestamp)).to_string(),
        None => format!("{time} µs after 2000-01-01"),
    }
}

/// A `TimestampTz` from the system's clock.
pub fn from_system(time: std::time::SystemTime) -> Option<i64> {
    let timestamp = Timestamp::try_from(time).ok()?;
    timestamp.as_microsecond().checked_sub(POSTGRES_EPOCH)
}

/// The system's time as RFC 3339 UTC, whole seconds.
pub fn rfc3339(time: std::time::SystemTime) -> String {
    match Timestamp::try_from(time) {
        Ok(timestamp) => timestamp.round(jiff::Unit::Second).unwrap_or(timestamp).to_string(),
        Err(_) => "unknown".to_owned(),
    }
}

/// From an earlier `TimestampTz` to a later one; zero where it is not later.
pub fn between(earlier: i64, later: i64) -> std::time::Duration {
    let micros = later.saturating_sub(earlier).max(0);
    SignedDuration::from_micros(micros).unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> TimeZone {
        // CET/CEST as a POSIX rule: independent of the machine's time zone files.
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("valid rule")
    }

    fn utc(text: &str) -> i64 {
        text.parse::<Timestamp>().expect("RFC 3339").as_microsecond() - POSTGRES_EPOCH
    }

    #[test]
    fn every_form_that_users_write_is_read() {
        let wanted = utc("2026-11-22T13:02:59Z");
        for text in [
            "2026-11-22 14:02:59+01",
            "2026-11-22 14:02:59+1",
            "2026-11-22 14:02:59 +01:00",
            "2026-11-22 14:02:59.000+0100",
            "2026-11-22T13:02:59Z",
            "2026-11-22 13:02:59 UTC",
            "2026-11-22 08:32:59-04:30",
            "2026-11-22 14:02:59",
        ] {
            assert_eq!(parse(text, &berlin()), Ok(wanted), "{text}");
        }
        assert_eq!(parse("2026-11-22 13:02:59.123456Z", &berlin()), Ok(wanted + 123_456));
        assert_eq!(parse("2026-07-01", &berlin()), Ok(utc("2026-06-30T22:00:00Z")));
        assert_eq!(parse("2000-01-01 00:00 UTC", &berlin()), Ok(0));
    }

    #[test]
    fn a_local_time_that_exists_twice_or_never_is_refused() {
        let twice = parse("2026-10-25 02:30:00", &berlin()).expect_err("twice");
        assert!(twice.contains("+02") && twice.contains("+01"), "{twice}");
        assert!(parse("2026-03-29 02:30:00", &berlin()).is_err());
        assert!(parse("2026-10-25 02:30:00+02", &berlin()).is_ok());
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for text in [
            "",
            "now",
            "yesterday",
            "infinity",
            "14:02:59",
            "22.11.2026 14:02",
            "2026-11-22x14:02",
            "2026-11-22 14",
            "2026-13-01 00:00",
            "2026-11-22 25:00",
            "2026-11-22 14:02:59.1234567",
            "2026-11-22 14:02:59 CET",
            "2026-11-22 14:02:59 Nowhere/Land",
            "2026-11-22 14:02:59+16",
            "2026-11-22 14:02:59+1:00",
            "2026-11-22 14:02:59+01 x",
            "2026-11-22 +01",
            "é026-11-22 14:02",
        ] {
            assert!(parse(text, &berlin()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_reads_back_as_it_prints() {
        let time = utc("2026-11-22T13:02:59.5Z");
        let text = format(time, &berlin());
        assert_eq!(text, "2026-11-22T14:02:59.5+01:00");
        assert_eq!(parse(&text, &TimeZone::UTC), Ok(time));
        assert_eq!(format(i64::MAX, &TimeZone::UTC), format!("{} µs after 2000-01-01", i64::MAX));
    }
}

//! Printing `TimestampTz` values in messages. Programs that know the user's time zone print their own.

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Days from 0000-03-01 to 2000-01-01 in the proleptic Gregorian calendar.
const EPOCH_DAYS: i64 = 730_425;

/// Microseconds since 2000-01-01 UTC as RFC 3339 in UTC. Years past four digits print as they are.
pub fn display(time: i64) -> String {
    let (days, micros) = (time.div_euclid(MICROS_PER_DAY), time.rem_euclid(MICROS_PER_DAY));
    let (year, month, day) = date(days);
    let seconds = micros / 1_000_000;
    let fraction = match micros % 1_000_000 {
        0 => String::new(),
        rest => format!(".{rest:06}"),
    };
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// As [`display`], for a time that may not exist.
pub(crate) fn display_or_none(time: Option<i64>) -> String {
    time.map_or_else(|| "none at all".to_owned(), display)
}

/// Year, month and day of a day counted from 2000-01-01. Years are counted from March, so that the day that leap
/// years add is the last one of the year.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + EPOCH_DAYS;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_people_write_them() {
        for (time, text) in [
            (0, "2000-01-01T00:00:00Z"),
            (-1, "1999-12-31T23:59:59.999999Z"),
            (59 * MICROS_PER_DAY, "2000-02-29T00:00:00Z"),
            (60 * MICROS_PER_DAY, "2000-03-01T00:00:00Z"),
            (366 * MICROS_PER_DAY - 500_000, "2000-12-31T23:59:59.500000Z"),
            (848_671_379_000_000, "2026-11-22T14:02:59Z"),
            (-36_524 * MICROS_PER_DAY, "1900-01-01T00:00:00Z"),
        ] {
            assert_eq!(display(time), text);
        }
    }

    #[test]
    fn even_the_farthest_times_print() {
        assert!(display(i64::MAX).ends_with('Z'));
        assert!(display(i64::MIN).ends_with('Z'));
    }
}

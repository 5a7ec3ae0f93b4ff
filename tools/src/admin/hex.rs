//! A page for a person: the header's fields and the bytes, 16 a line, repeats as `*`.

use std::fmt::Write;
use zenith_pgformat::Page;
use zenith_pgformat::page::{PageHeader, is_all_zeros};

/// The fields of a page's header, one a line.
pub fn header(page: &Page) -> String {
    if is_all_zeros(page) {
        return "all zeros: PostgreSQL has not initialised this page\n".to_owned();
    }
    let header = PageHeader::decode(page);
    format!(
        "pd_lsn      {}\npd_checksum {:#06x}\npd_flags    {:#06x}\npd_lower    {}\npd_upper    {}\npd_special  {}\n\
         pd_prune_xid {}\n",
        header.lsn,
        header.checksum,
        header.flags,
        header.lower,
        header.upper,
        header.special,
        header.prune_xid
    )
}

/// All bytes as `hexdump -C` prints them.
pub fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut last: Option<&[u8]> = None;
    let mut starred = false;
    for (index, line) in bytes.chunks(16).enumerate() {
        if last == Some(line) {
            if !starred {
                text.push_str("*\n");
            }
            starred = true;
            continue;
        }
        (last, starred) = (Some(line), false);
        let _ = write!(text, "{:08x} ", index * 16);
        for byte in line {
            let _ = write!(text, " {byte:02x}");
        }
        let _ = write!(text, "{:width$}  |", "", width = 3 * (16 - line.len()));
        text.extend(
            line.iter().map(|byte| if (0x20..0x7F).contains(byte) { char::from(*byte) } else { '.' }),
        );
        text.push_str("|\n");
    }
    let _ = writeln!(text, "{:08x}", bytes.len());
    text
}

/// Two digits a byte.
pub fn plain(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_lines_are_left_out_once() {
        let mut bytes = vec![0; 64];
        bytes[48] = b'A';
        let text = dump(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[1], "*");
        assert!(
            lines[2].starts_with("00000030  41 00") && lines[2].ends_with("|A...............|"),
            "{text}"
        );
        assert_eq!(lines[3], "00000040");
    }
}

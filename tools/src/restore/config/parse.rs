//! Reading configuration files as `guc-file.l` does, line by line, so that single lines can be taken out.

/// What one line of a configuration file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Line {
    /// Blank, a comment, or nothing that PostgreSQL could read either.
    Other,
    /// `name = value`; the name in lower case.
    Setting(String, String),
    /// `include`, `include_if_exists` or `include_dir`, and the path.
    Include(String, String),
}

/// Parses one line.
pub(crate) fn line(text: &str) -> Line {
    let text = text.trim_start();
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$')))
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| !(c.is_ascii_alphabetic() || c == '_')) {
        return Line::Other;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let Some(value) = value(rest) else { return Line::Other };
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "include" | "include_if_exists" | "include_dir" => Line::Include(name, value),
        _ => Line::Setting(name, value),
    }
}

/// A value: quoted, with `''` and backslash escapes, or a bare word up to white space or a comment.
fn value(text: &str) -> Option<String> {
    let Some(quoted) = text.strip_prefix('\'') else {
        let word: String = text.chars().take_while(|c| !c.is_whitespace() && *c != '#').collect();
        return (!word.is_empty()).then_some(word);
    };
    let mut value = String::new();
    let mut chars = quoted.chars().peekable();
    loop {
        match chars.next()? {
            '\'' if chars.peek() == Some(&'\'') => {
                chars.next();
                value.push('\'');
            }
            '\'' => return Some(value),
            '\\' => value.push(unescape(chars.next()?)),
            c => value.push(c),
        }
    }
}

/// The escapes of `GUC_scanstr`; octal numbers are as rare there as they are useless, and stay as they are.
fn unescape(c: char) -> char {
    match c {
        'b' => '\u{8}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        other => other,
    }
}

/// A value quoted for a configuration file.
pub(crate) fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// The items of a comma-separated list whose items may be in double quotes (`SplitDirectoriesString`).
pub(crate) fn list(value: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut quoted = false;
    for c in value.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => items.push(String::new()),
            _ => items.last_mut().into_iter().for_each(|item| item.push(c)),
        }
    }
    items.iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
}

/// Whether a boolean setting is on (`parse_bool`): any prefix of true and yes, `on`, `1`.
pub(crate) fn is_on(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    value == "1"
        || value == "on"
        || (!value.is_empty() && ("true".starts_with(&value) || "yes".starts_with(&value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str) -> Line {
        Line::Setting(name.to_owned(), value.to_owned())
    }

    #[test]
    fn settings_read_as_postgresql_reads_them() {
        for (text, expected) in [
            ("port = 5432", setting("port", "5432")),
            ("  Port=5432# comment", setting("port", "5432")),
            ("port 5432", setting("port", "5432")),
            ("a.b = 'it''s' # x", setting("a.b", "it's")),
            (r"x = 'a\'b\\c\td'", setting("x", "a'b\\c\td")),
            ("x = ''", setting("x", "")),
            ("include_dir 'conf.d'", Line::Include("include_dir".into(), "conf.d".into())),
            ("#port = 1", Line::Other),
            ("", Line::Other),
            ("x =", Line::Other),
            ("x = 'open", Line::Other),
            ("= 5", Line::Other),
        ] {
            assert_eq!(line(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_quoted_reads_back() {
        for text in ["", "plain", "it's", r"C:\x", "a\\'b", "#"] {
            assert_eq!(line(&format!("x = {}", quote(text))), setting("x", text));
        }
    }

    #[test]
    fn lists_are_split_at_commas_outside_quotes() {
        assert_eq!(list(r#"a, "b,c" ,, d"#), ["a", "b,c", "d"]);
        assert_eq!(list(""), Vec::<String>::new());
    }

    #[test]
    fn booleans_are_those_of_postgresql() {
        for on in ["on", "ON", "true", "t", "yes", "y", "1"] {
            assert!(is_on(on), "{on}");
        }
        for off in ["off", "false", "no", "0", "o", "", "2"] {
            assert!(!is_on(off), "{off}");
        }
    }
}

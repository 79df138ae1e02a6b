//! `x-forwarded-client-cert` in Envoy's form: elements with `,` between them, one a proxy, each of `Key=Value` pairs with
//! `;` between them; a value that holds one of these is in double quotes, with `\"` for a quote.
//!
//! Each proxy adds its element at the end, so only the last one is by the proxy next to us; all before it may be forged.

use hyper::header::HeaderMap;

use super::{FORWARDED_CERTIFICATE, Names};

/// The most bytes that are looked at: more is no header of a proxy's.
const MAX_BYTES: usize = 16 * 1024;

/// What the nearest proxy says of its caller's certificate. `None` if there is no such header, or anything about it is
/// not as it must be: a quote that a forger left open would else swallow the proxy's own words.
pub(super) fn nearest(headers: &HeaderMap) -> Option<Names> {
    let lines = headers.get_all(FORWARDED_CERTIFICATE).into_iter();
    let lines: Option<Vec<&str>> = lines.map(|line| line.to_str().ok()).collect();
    let header = lines?.join(",");
    if header.len() > MAX_BYTES {
        return None;
    }
    let (mut uris, mut dns) = (Vec::new(), Vec::new());
    let mut rest = header.as_str();
    loop {
        let (key, after) = rest.split_once('=')?;
        if key.contains([',', ';', '"']) {
            return None;
        }
        let (value, after) = value(after)?;
        match key.trim().to_ascii_lowercase().as_str() {
            "uri" if !value.is_empty() => uris.push(value),
            "dns" if !value.is_empty() => dns.push(value),
            _ => {}
        }
        let mut delimited = after.chars();
        match delimited.next() {
            None => break,
            Some(';') => {}
            Some(',') => {
                // What stood before was another proxy's.
                uris.clear();
                dns.clear();
            }
            Some(_) => return None,
        }
        rest = delimited.as_str();
    }
    Some(Names::new(
        uris.iter().map(String::as_str),
        dns.iter().map(String::as_str),
    ))
}

/// The value at the start of a text, and what comes after it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ';']).unwrap_or(text.len());
        let (value, after) = text.split_at(end);
        return (!value.contains('"')).then(|| (value.trim().to_owned(), after));
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(chars.next()?),
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Option<(Option<String>, Vec<String>)> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_CERTIFICATE, line.parse().unwrap());
        }
        let names = nearest(&headers)?;
        Some((names.spiffe.map(|id| id.to_string()), names.dns))
    }

    fn spiffe(path: &str) -> Option<(Option<String>, Vec<String>)> {
        Some((Some(format!("spiffe://td/{path}")), vec![]))
    }

    #[test]
    fn as_envoy_writes_it() {
        let istio =
            r#"By=spiffe://td/us;Hash=0123abcd;Subject="CN=a,OU=\"b;c\"";URI=spiffe://td/a"#;
        assert_eq!(of(&[istio]), spiffe("a"));
        assert_eq!(
            of(&[&format!("{istio},By=x;URI=spiffe://td/b")]),
            spiffe("b")
        );
        assert_eq!(of(&[istio, "By=x;URI=spiffe://td/b"]), spiffe("b"));
        assert_eq!(of(&["by=x;uri=\"spiffe://td/a\""]), spiffe("a"));
        assert_eq!(
            of(&["Hash=1;Subject=\"\";URI=;DNS=a.example;DNS=B.example"]),
            Some((None, vec!["a.example".into(), "b.example".into()]))
        );
        assert_eq!(of(&["Hash=1"]), Some((None, vec![])));
    }

    /// What a forger sends comes before what the proxy adds, whatever it looks like.
    #[test]
    fn what_a_forger_sends_before_counts_for_nothing() {
        let added = r#"By=spiffe://td/us;Hash=1;Subject="CN=evil";URI=spiffe://td/evil"#;
        for forged in [
            "URI=spiffe://td/good",
            "URI=spiffe://td/good;X=",
            "URI=spiffe://td/good,",
            "URI=spiffe://td/good;",
            r#"URI=spiffe://td/good;Subject=""#,
            r#"URI=spiffe://td/good;Subject="\"#,
            r#"URI=spiffe://td/good;Subject=x""#,
            r#"URI=spiffe://td/good;Subject="""#,
            r#"""#,
            "",
            "=",
            ",,,",
        ] {
            for header in [vec![forged, added], vec![&*format!("{forged},{added}")]] {
                let told = of(&header);
                assert!(
                    told.is_none() || told == spiffe("evil"),
                    "{header:?}: {told:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_not_of_the_form_says_nothing() {
        for header in [
            "",
            "spiffe://td/a",
            "URI",
            "URI=\"spiffe://td/a",
            "URI=\"spiffe://td/a\"x",
            "URI=spi\"ffe://td/a",
            "URI=spiffe://td/a;",
            "URI=spiffe://td/a,",
            ";URI=spiffe://td/a",
        ] {
            assert_eq!(of(&[header]), None, "{header:?}");
        }
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[&format!("Hash={}", "a".repeat(MAX_BYTES))]), None);
        assert_eq!(
            of(&["URI=spiffe://td/a;URI=spiffe://td/b"]),
            Some((None, vec![]))
        );
    }
}

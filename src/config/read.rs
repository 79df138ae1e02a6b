//! From texts to values, and the faults that are found on the way.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use jiff::SignedDuration;
use url::{Host, Url};

use super::cli::variable;
use crate::{
    identity::{FORWARDED_CERTIFICATE, Pattern},
    reload::Fault,
    rest,
    telemetry::LogFormat,
};

/// Everything that is wrong with a configuration, a line each.
#[derive(Debug, Default)]
pub struct Faults(Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used:")?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl std::error::Error for Faults {}

impl Faults {
    pub(super) fn add(&mut self, flag: &str, what: impl fmt::Display) {
        self.0
            .push(format!("--{flag} ({}): {what}", variable(flag)));
    }

    /// Something is wrong with a variable that has no flag.
    pub(super) fn add_variable(&mut self, variable: &str, what: &str) {
        self.0.push(format!("{variable}: {what}"));
    }

    /// Gives what is made of files, if nothing is wrong with them.
    pub(super) fn take<T>(&mut self, made: Result<T, Vec<Fault>>) -> Option<T> {
        let found = made.map_err(|found| {
            for fault in found {
                self.add(fault.flag, fault.what);
            }
        });
        found.ok()
    }

    pub(super) fn demand(&mut self, flag: &str, holds: bool, what: &str) {
        if !holds {
            self.add(flag, what);
        }
    }

    /// Reads a value; a fault leaves a stand-in, which nobody sees because faults end in an error.
    pub(super) fn read<T>(
        &mut self,
        flag: &str,
        text: &str,
        read: impl FnOnce(&str) -> Result<T, &'static str>,
        or: T,
    ) -> T {
        read(text.trim()).unwrap_or_else(|what| {
            self.add(flag, what);
            or
        })
    }

    pub(super) fn or<T>(self, value: T) -> Result<T, Faults> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

/// Stands in for an address that cannot be read.
pub(super) const NOWHERE: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(
    std::net::Ipv4Addr::LOCALHOST,
    0,
));
/// Stands in for a time that cannot be read.
pub(super) const MOMENT: Duration = Duration::ZERO;

pub(super) fn stand_in_url() -> Url {
    Url::parse("https://stand-in.invalid").expect("a legal URL")
}

pub(super) fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse()
        .map_err(|_| "must be an IP address and a port, such as 127.0.0.1:50051")
}

pub(super) fn switch(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "on" | "1" | "yes" => Ok(true),
        "false" | "off" | "0" | "no" | "" => Ok(false),
        _ => Err("must be on or off, or true or false"),
    }
}

pub(super) fn time(text: &str) -> Result<Duration, &'static str> {
    const FORM: &str = "must be a time above zero, such as 250ms, 10s or 1m";
    let time = SignedDuration::from_str(text)
        .ok()
        .and_then(|time| Duration::try_from(time).ok());
    time.filter(|time| !time.is_zero() && *time <= Duration::from_secs(86_400))
        .ok_or(FORM)
}

/// A time that may be zero.
pub(super) fn time_or_none(text: &str) -> Result<Duration, &'static str> {
    if text == "0" || text == "0s" {
        Ok(Duration::ZERO)
    } else {
        time(text)
    }
}

pub(super) fn count(text: &str) -> Result<usize, &'static str> {
    let count = text
        .parse()
        .ok()
        .filter(|count| (1..=1_000_000).contains(count));
    count.ok_or("must be a number from 1 to 1000000")
}

/// A number that may be zero.
pub(super) fn count_or_none(text: &str) -> Result<usize, &'static str> {
    if text == "0" { Ok(0) } else { count(text) }
}

/// A share of a whole.
pub(super) fn share(text: &str) -> Result<f32, &'static str> {
    let share = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or("must be a number from 0 to 1, such as 0.1")
}

pub(super) fn bytes(text: &str) -> Result<usize, &'static str> {
    let bytes = text
        .parse()
        .ok()
        .filter(|bytes| (1..=16 * 1024 * 1024).contains(bytes));
    bytes.ok_or("must be a number of bytes, from 1 to 16777216")
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, &'static str> {
    match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("must be json or text"),
    }
}

pub(super) fn base_url(text: &str) -> Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "must be a URL, such as https://api.sqril.com")?;
    if !matches!(url.scheme(), "https" | "http") {
        Err("must be https, or http on loopback")
    } else if !url.username().is_empty() || url.password().is_some() {
        Err("must not hold credentials; they have flags of their own")
    } else if url.query().is_some() || url.fragment().is_some() {
        Err("must not hold a query or a fragment")
    } else {
        Ok(url)
    }
}

pub(super) fn proxy(text: &str) -> Result<rest::Proxy, &'static str> {
    match text {
        "off" | "" => Ok(rest::Proxy::Off),
        "env" => Ok(rest::Proxy::Environment),
        _ => match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(rest::Proxy::Url(url)),
            _ => Err("must be an http or https URL, env or off"),
        },
    }
}

/// Whether callers are known by a proxy's header: only one is known.
pub(super) fn identity_header(text: &str) -> Result<bool, &'static str> {
    if text.eq_ignore_ascii_case(FORWARDED_CERTIFICATE) {
        return Ok(true);
    }
    switch(text).map_err(|_| "must be x-forwarded-client-cert, or off")
}

/// Networks, or single addresses.
pub(super) fn networks(texts: &[String]) -> Result<Vec<IpNet>, &'static str> {
    let network = |text: &String| {
        let text = text.trim();
        let address = || text.parse::<IpAddr>().map(IpNet::from).ok();
        text.parse::<IpNet>().ok().or_else(address)
    };
    let networks: Option<Vec<IpNet>> = texts.iter().map(network).collect();
    networks.ok_or("must be networks such as 10.0.0.0/8, or addresses")
}

pub(super) fn patterns(texts: &[String]) -> Result<Vec<Pattern>, &'static str> {
    let given = texts.iter().map(|text| text.trim());
    given
        .filter(|text| !text.is_empty())
        .map(Pattern::parse)
        .collect()
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

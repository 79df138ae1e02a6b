//! The client id and secret: each given itself or in a file, checked alike, and read again where it is in a file.

use std::{env, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::{SECRET_VARIABLE, cli::ServeArgs, read::Faults};
use crate::{
    reload::{Contents, Fault, Loaded, Source},
    rest::Credentials,
};

const ID: &str = "client-id";
const ID_FILE: &str = "client-id-file";
const SECRET_FILE: &str = "client-secret-file";

/// A text, or the file that holds it.
enum Given {
    Text(SecretString),
    File(PathBuf),
}

impl ServeArgs {
    pub(super) fn credentials(&self, faults: &mut Faults) -> Option<Loaded<Credentials>> {
        let secret = env::var(SECRET_VARIABLE).ok();
        let id = one_of(
            self.client_id.clone(),
            &self.client_id_file,
            "--client-id-file",
        );
        let secret = one_of(secret, &self.client_secret_file, SECRET_VARIABLE);
        let id = id.and_then(|id| id.checked(check_id));
        let secret = secret.and_then(|secret| secret.checked(check));
        let id = id.map_err(|what| faults.add(ID, what)).ok();
        let secret = secret.map_err(|what| faults.add(SECRET_FILE, what)).ok();

        let files = [(ID_FILE, &id), (SECRET_FILE, &secret)];
        let files = files.into_iter().filter_map(|(flag, given)| match given {
            Some(Given::File(path)) => Some((flag, path.clone())),
            Some(Given::Text(_)) | None => None,
        });
        let opened = Source::open("credentials", files.collect(), move |contents| {
            let id = id.as_ref().map(|id| id.read(contents, ID_FILE, check_id));
            let secret = secret
                .as_ref()
                .map(|secret| secret.read(contents, SECRET_FILE, check));
            match (id.transpose(), secret.transpose()) {
                (Ok(Some(id)), Ok(Some(secret))) => Ok(Credentials {
                    id: id.expose_secret().to_owned(),
                    secret,
                }),
                (id, secret) => Err(id.err().into_iter().chain(secret.err()).collect()),
            }
        });
        faults.take(opened)
    }
}

/// A text that is given itself or as a file, but not both; the other way to give it is named in a fault.
fn one_of(given: Option<String>, file: &Option<String>, other: &str) -> Result<Given, String> {
    let given = given.filter(|text| !text.is_empty());
    let file = file.as_ref().filter(|file| !file.is_empty());
    match (given, file) {
        (Some(text), None) => Ok(Given::Text(SecretString::from(text))),
        (None, Some(file)) => Ok(Given::File(PathBuf::from(file))),
        (Some(_), Some(_)) => Err(format!("give it or {other}, not both")),
        (None, None) => Err(format!("needed, or {other}; or try --sandbox")),
    }
}

impl Given {
    /// The same, if it is a file or has passed the check.
    fn checked(self, check: fn(&str) -> Result<(), &'static str>) -> Result<Self, String> {
        if let Given::Text(text) = &self {
            check(text.expose_secret())?;
        }
        Ok(self)
    }

    fn read(
        &self,
        contents: &Contents,
        flag: &'static str,
        check: fn(&str) -> Result<(), &'static str>,
    ) -> Result<SecretString, Fault> {
        match self {
            Given::Text(text) => Ok(text.clone()),
            Given::File(_) => {
                let bytes = contents.get(flag).unwrap_or_default();
                let text = std::str::from_utf8(bytes).map_err(|_| "must be UTF-8");
                let text = text.map(without_newline).and_then(|text| {
                    check(text)?;
                    Ok(SecretString::from(text))
                });
                text.map_err(|what| Fault::new(flag, what))
            }
        }
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        Err("must not be empty")
    } else if text.chars().any(char::is_control) {
        Err("must not hold control characters")
    } else {
        Ok(())
    }
}

fn check_id(text: &str) -> Result<(), &'static str> {
    if text.contains(':') {
        Err("must not hold \":\", which ends it in Basic authentication")
    } else {
        check(text)
    }
}

/// A file's text without the newline that editors leave at its end.
fn without_newline(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

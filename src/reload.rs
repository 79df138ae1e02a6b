//! What is made from files is made anew when they change: certificates, credentials.
//!
//! Files are read as a whole set and compared by content, so that every way to replace them is seen: a write, a
//! rename, the swap of a symbolic link by which Kubernetes changes a mounted secret. A set is taken only if it was read
//! twice alike, for files change one after another; and a set that cannot be used changes nothing but the log, a metric
//! and the detail of `/readyz`.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{Instant, sleep, sleep_until},
};
use tracing::{error, info};
use zeroize::Zeroizing;

use crate::{metrics::Metrics, shutdown::Hangups};

/// The most bytes read of a file: long lists of revoked certificates are the largest.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// How long a set must stay as it is before it is taken.
const SETTLE: Duration = Duration::from_millis(100);
/// How long to wait before files are read once more because somebody asks.
const QUIET: Duration = Duration::from_secs(1);
/// How often a set is looked at in a row while it goes on changing.
const MAX_LOOKS: usize = 20;

/// What is wrong with a file, by the flag that names it. Says nothing of what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The flag, without `--`.
    pub flag: &'static str,
    /// What is wrong.
    pub what: String,
}

impl Fault {
    /// This is wrong with the file of this flag.
    pub fn new(flag: &'static str, what: impl Into<String>) -> Self {
        let what = what.into();
        Fault { flag, what }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}: {}", self.flag, self.what)
    }
}

/// What was in a set of files, by flag. Zeroed when dropped.
pub struct Contents(Vec<(&'static str, Zeroizing<Vec<u8>>)>);

impl Contents {
    /// What was in the file of this flag, if the set has one.
    pub fn get(&self, flag: &str) -> Option<&[u8]> {
        let found = self.0.iter().find(|(name, _)| *name == flag);
        found.map(|(_, bytes)| bytes.as_slice())
    }

    fn digest(&self) -> Digest {
        let mut digest = Context::new(&SHA256);
        for (flag, bytes) in &self.0 {
            digest.update(&(flag.len() + bytes.len()).to_be_bytes());
            digest.update(flag.as_bytes());
            digest.update(bytes);
        }
        Digest(digest.finish().as_ref().to_vec())
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Digest(Vec<u8>);

type Parse<T> = Box<dyn Fn(&Contents) -> Result<T, Vec<Fault>> + Send + Sync>;

/// A set of files, and how a value is made of it.
pub struct Source<T> {
    name: &'static str,
    files: Vec<(&'static str, PathBuf)>,
    parse: Parse<T>,
    in_use: Digest,
}

impl<T> fmt::Debug for Source<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// A value, and the files that it was made of, if it was.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The value.
    pub value: T,
    /// What it was made of.
    pub source: Option<Source<T>>,
}

impl<T> From<T> for Loaded<T> {
    fn from(value: T) -> Self {
        Loaded {
            value,
            source: None,
        }
    }
}

impl<T> Source<T> {
    /// Reads the files for the first time; without any there is nothing to read again. The name is that of logs and
    /// metrics.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn open(
        name: &'static str,
        files: Vec<(&'static str, PathBuf)>,
        parse: impl Fn(&Contents) -> Result<T, Vec<Fault>> + Send + Sync + 'static,
    ) -> Result<Loaded<T>, Vec<Fault>> {
        let contents = read(&files)?;
        let value = parse(&contents)?;
        let watched = !files.is_empty();
        let source = watched.then(|| Source {
            name,
            files,
            parse: Box::new(parse),
            in_use: contents.digest(),
        });
        Ok(Loaded { value, source })
    }
}

/// Reads every file of a set, or says of each why it cannot be read.
fn read(files: &[(&'static str, PathBuf)]) -> Result<Contents, Vec<Fault>> {
    let (mut contents, mut faults) = (Vec::new(), Vec::new());
    for (flag, path) in files {
        let what = match read_one(path) {
            Ok(bytes) if bytes.len() as u64 <= MAX_FILE_BYTES => {
                contents.push((*flag, bytes));
                continue;
            }
            Ok(_) => format!("is larger than {MAX_FILE_BYTES} bytes"),
            Err(error) => error.to_string(),
        };
        faults.push(Fault::new(flag, format!("{}: {what}", path.display())));
    }
    if faults.is_empty() {
        Ok(Contents(contents))
    } else {
        Err(faults)
    }
}

/// Reads a file as far as the limit and one byte more. There is room for it at once: a buffer that grew would leave
/// parts of a secret behind.
fn read_one(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len().min(MAX_FILE_BYTES);
    let mut bytes = Zeroizing::new(Vec::with_capacity(size as usize + 64));
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What is wrong now with sets of files that are in use in an older form.
#[derive(Clone, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Troubles {
    /// Each set by its name, with what is wrong.
    pub fn all(&self) -> BTreeMap<&'static str, String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes what is wrong with a set, or that nothing is. Whether that is news.
    fn note(&self, name: &'static str, trouble: Option<&str>) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(name).map(String::as_str) == trouble {
            return false;
        }
        match trouble {
            Some(trouble) => all.insert(name, trouble.to_owned()),
            None => all.remove(name),
        };
        true
    }
}

/// A source in use, and who takes what is made of it.
struct Watch<T> {
    source: Source<T>,
    take: Box<dyn Fn(T) + Send>,
    /// Something new, seen once.
    candidate: Option<Digest>,
    /// Something new that cannot be used.
    refused: Option<Digest>,
}

trait Look: Send {
    /// Reads the files and takes what is new. False if they may still be changing.
    fn look(&mut self, troubles: &Troubles, metrics: &Metrics) -> bool;
}

impl<T> Look for Watch<T> {
    fn look(&mut self, troubles: &Troubles, metrics: &Metrics) -> bool {
        let name = self.source.name;
        let made = match read(&self.source.files) {
            Err(faults) => {
                (self.candidate, self.refused) = (None, None);
                Err(faults)
            }
            Ok(contents) => {
                let digest = contents.digest();
                if digest == self.source.in_use {
                    (self.candidate, self.refused) = (None, None);
                    if troubles.note(name, None) {
                        metrics.reload_mended(name);
                        info!(name, "files are again as they are in use");
                    }
                    return true;
                }
                if self.refused.as_ref() == Some(&digest) {
                    return true;
                }
                if self.candidate.as_ref() != Some(&digest) {
                    self.candidate = Some(digest);
                    return false;
                }
                let made = (self.source.parse)(&contents);
                match made {
                    Ok(_) => self.source.in_use = digest,
                    Err(_) => self.refused = Some(digest),
                }
                made
            }
        };
        match made {
            Ok(value) => {
                (self.take)(value);
                troubles.note(name, None);
                metrics.reloaded(name);
                info!(name, "reloaded");
            }
            Err(faults) => {
                let what = faults.iter().map(Fault::to_string).collect::<Vec<_>>();
                let what = what.join("; ");
                if troubles.note(name, Some(&what)) {
                    metrics.reload_failed(name);
                    error!(name, what, "reload failed: the set before it stays in use");
                }
            }
        }
        true
    }
}

/// Reads again what was read from files.
pub struct Reloader {
    watches: Vec<Box<dyn Look>>,
    troubles: Troubles,
    metrics: Metrics,
}

impl Reloader {
    /// Watches nothing yet.
    pub fn new(metrics: Metrics) -> Self {
        Reloader {
            watches: Vec::new(),
            troubles: Troubles::default(),
            metrics,
        }
    }

    /// What is wrong at any time.
    pub fn troubles(&self) -> Troubles {
        self.troubles.clone()
    }

    /// Hands every further value of a source on, if there is one.
    pub fn watch<T: 'static>(
        &mut self,
        source: Option<Source<T>>,
        take: impl Fn(T) + Send + 'static,
    ) {
        let Some(source) = source else { return };
        self.metrics.watched(source.name);
        self.watches.push(Box::new(Watch {
            source,
            take: Box::new(take),
            candidate: None,
            refused: None,
        }));
    }

    /// Looks every so often (never if `None`), at each hang-up, and soon after each time that somebody asks.
    pub async fn run(mut self, every: Option<Duration>, mut hangups: Hangups, asked: Arc<Notify>) {
        let mut quiet_until = Instant::now();
        loop {
            let tick = async {
                match every {
                    Some(every) => sleep(every).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tick => {}
                () = hangups.next() => info!(signal = "SIGHUP", "reading files again"),
                () = async {
                    sleep_until(quiet_until).await;
                    asked.notified().await;
                } => quiet_until = Instant::now() + QUIET,
            }
            for _ in 0..MAX_LOOKS {
                let settled;
                (self, settled) = self.look().await;
                if settled {
                    break;
                }
                sleep(SETTLE).await;
            }
        }
    }

    /// One look at every set, on a thread that may wait for a disk. Whether all were settled.
    async fn look(mut self) -> (Self, bool) {
        let looked = spawn_blocking(move || {
            let mut settled = true;
            for watch in &mut self.watches {
                settled &= watch.look(&self.troubles, &self.metrics);
            }
            (self, settled)
        });
        looked.await.expect("reading files does not panic")
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;

    /// Two files that must be alike, in a folder of the test's own.
    struct Pair {
        folder: PathBuf,
        watch: Watch<String>,
        taken: Arc<Mutex<Vec<String>>>,
        parsed: Arc<AtomicU32>,
    }

    impl Pair {
        fn new(name: &str) -> Pair {
            let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let files = ["a", "b"].map(|flag| (flag, folder.join(flag)));
            for (_, path) in &files {
                fs::write(path, "1").unwrap();
            }
            let taken: Arc<Mutex<Vec<String>>> = Arc::default();
            let parsed = Arc::new(AtomicU32::new(0));
            let count = Arc::clone(&parsed);
            let loaded = Source::open("pair", files.to_vec(), move |contents| {
                count.fetch_add(1, Ordering::Relaxed);
                let [a, b] = ["a", "b"].map(|flag| contents.get(flag).unwrap().to_vec());
                let text = String::from_utf8(a.clone()).unwrap();
                (a == b)
                    .then_some(text)
                    .ok_or_else(|| vec![Fault::new("b", "is another")])
            });
            let take = Arc::clone(&taken);
            let watch = Watch {
                source: loaded.unwrap().source.unwrap(),
                take: Box::new(move |text| take.lock().unwrap().push(text)),
                candidate: None,
                refused: None,
            };
            Pair {
                folder,
                watch,
                taken,
                parsed,
            }
        }

        fn write(&self, file: &str, text: &str) {
            fs::write(self.folder.join(file), text).unwrap();
        }

        /// Whether it is settled, what was taken so far, and what is wrong.
        fn look(&mut self, troubles: &Troubles) -> (bool, usize, Option<String>) {
            let settled = self.watch.look(troubles, &Metrics::default());
            let taken = self.taken.lock().unwrap().len();
            (settled, taken, troubles.all().remove("pair"))
        }
    }

    impl Drop for Pair {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.folder));
        }
    }

    #[test]
    fn half_a_change_is_waited_out() {
        let (mut pair, troubles) = (Pair::new("half-a-change"), Troubles::default());
        assert_eq!(pair.look(&troubles), (true, 0, None));
        pair.write("a", "2");
        assert_eq!(pair.look(&troubles), (false, 0, None));
        pair.write("b", "2");
        assert_eq!(pair.look(&troubles), (false, 0, None));
        assert_eq!(pair.look(&troubles), (true, 1, None));
        assert_eq!(pair.look(&troubles), (true, 1, None));
        assert_eq!(*pair.taken.lock().unwrap(), ["2"]);
    }

    #[test]
    fn a_set_is_judged_once_and_complained_of_until_it_is_mended() {
        let (mut pair, troubles) = (Pair::new("judged-once"), Troubles::default());
        let other = Some("--b: is another".to_owned());
        pair.write("a", "2");
        assert_eq!(pair.look(&troubles), (false, 0, None));
        for _ in 0..3 {
            assert_eq!(pair.look(&troubles), (true, 0, other.clone()));
        }
        assert_eq!(pair.parsed.load(Ordering::Relaxed), 2);

        // Away and back again, it is judged anew.
        fs::remove_file(pair.folder.join("b")).unwrap();
        let (settled, taken, trouble) = pair.look(&troubles);
        assert!(settled && taken == 0 && trouble.unwrap().contains("No such file"));
        pair.write("b", "1");
        pair.look(&troubles);
        assert_eq!(pair.look(&troubles), (true, 0, other));

        pair.write("a", "1");
        assert_eq!(pair.look(&troubles), (true, 0, None));
        assert_eq!(pair.parsed.load(Ordering::Relaxed), 3);
    }
}

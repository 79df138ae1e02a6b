//! The program under test, the upstream that it calls, and short names for what callers see.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    process::{Child, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use sqril_grpc::pb::{
    UpdateCustomerRequest, UpdateCustomerResponse, customer_service_client::CustomerServiceClient,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, watch},
    time::timeout,
};
use tonic::{Code, Request, Response, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// Longer than anything here takes; a test that gets here fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const CLIENT_ID: &str = "test-client";
pub const CLIENT_SECRET: &str = "s3cret:with ünicode";

/// A running façade. Killed when dropped.
pub struct Facade {
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    process: Child,
    log: watch::Receiver<Vec<String>>,
}

impl Facade {
    /// A façade before this upstream.
    pub async fn before(upstream: &str) -> Facade {
        Self::with(upstream, &[]).await
    }

    /// A façade before this upstream, with more flags.
    pub async fn with(upstream: &str, flags: &[&str]) -> Facade {
        let id = [
            "--upstream-url",
            upstream,
            "--client-id",
            CLIENT_ID,
            "--drain-delay",
            "0s",
        ];
        Self::start(
            &[&id, flags].concat(),
            &[("SQRIL_GRPC_CLIENT_SECRET", CLIENT_SECRET)],
        )
        .await
    }

    /// A façade before the embedded Sqril.
    pub async fn sandbox() -> Facade {
        Self::start(&["--sandbox"], &[]).await
    }

    pub async fn start(flags: &[&str], variables: &[(&str, &str)]) -> Facade {
        let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let flags = [&ports, flags].concat();
        Self::spawn(program("serve", &flags, variables)).await
    }

    /// A façade before the embedded Sqril that may open so many files and no more.
    pub async fn limited_to(files: u32) -> Facade {
        let mut shell = std::process::Command::new("/bin/sh");
        let script = format!(
            "ulimit -n {files} && exec \"$0\" serve --sandbox --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0"
        );
        shell
            .args(["-c", &script, env!("CARGO_BIN_EXE_sqril-grpc")])
            .env_clear();
        Self::spawn(shell).await
    }

    async fn spawn(mut program: std::process::Command) -> Facade {
        program.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = program.spawn().unwrap();
        let log = lines_of(&mut process);
        let mut facade = Facade {
            grpc: ([0; 4], 0).into(),
            admin: ([0; 4], 0).into(),
            process,
            log,
        };
        let line = facade.logged(|line| line["message"] == "serving").await;
        facade.grpc = line["grpc"].as_str().unwrap().parse().unwrap();
        facade.admin = line["admin"].as_str().unwrap().parse().unwrap();
        facade
    }

    /// The first line of the log for which this holds, once there is one.
    pub async fn logged(&self, holds: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        self.logged_again(1, holds).await
    }

    /// The line of the log for which this holds for the so manieth time, once there is one.
    pub async fn logged_again(
        &self,
        times: usize,
        holds: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let mut log = self.log.clone();
        let found = async {
            loop {
                let lines = log.borrow_and_update().clone();
                if let Some(line) = lines
                    .iter()
                    .filter_map(|line| serde_json::from_str(line).ok())
                    .filter(&holds)
                    .nth(times - 1)
                {
                    return line;
                }
                log.changed()
                    .await
                    .expect("the program ended before it said so");
            }
        };
        timeout(PATIENCE, found)
            .await
            .expect("the log never said so")
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.log.borrow().join("\n")
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.grpc))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// Whether the façade takes a further connection.
    pub async fn takes_another(&self) -> bool {
        let endpoint = Channel::from_shared(format!("http://{}", self.grpc)).unwrap();
        let Ok(channel) = endpoint.connect().await else {
            return false;
        };
        HealthClient::new(channel)
            .check(HealthCheckRequest::default())
            .await
            .is_ok()
    }

    pub async fn client(&self) -> CustomerServiceClient<Channel> {
        CustomerServiceClient::new(self.channel().await)
    }

    pub async fn call(
        &self,
        request: impl tonic::IntoRequest<UpdateCustomerRequest>,
    ) -> Result<Response<UpdateCustomerResponse>, Status> {
        timeout(PATIENCE, self.client().await.update_customer(request))
            .await
            .expect("the call never ended")
    }

    /// The error that this request ends in.
    pub async fn refused(&self, request: impl tonic::IntoRequest<UpdateCustomerRequest>) -> Told {
        Told::of(&self.call(request).await.expect_err("an error"))
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(
            std::process::Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// How the program ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let ended = async { while self.log.changed().await.is_ok() {} };
        timeout(PATIENCE, ended)
            .await
            .expect("the program never ended");
        self.process.wait().unwrap()
    }
}

impl Drop for Facade {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The program with no variables but these.
pub fn program(command: &str, flags: &[&str], variables: &[(&str, &str)]) -> std::process::Command {
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_sqril-grpc"));
    program
        .arg(command)
        .args(flags)
        .env_clear()
        .envs(variables.iter().copied());
    program
}

/// Collects what a program writes, to standard output and error.
fn lines_of(process: &mut Child) -> watch::Receiver<Vec<String>> {
    let (sender, receiver) = watch::channel(Vec::new());
    let output: Box<dyn Read + Send> = Box::new(process.stdout.take().unwrap());
    let error: Box<dyn Read + Send> = Box::new(process.stderr.take().unwrap());
    for stream in [output, error] {
        let (sender, lines) = (sender.clone(), BufReader::new(stream).lines());
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .for_each(|line| sender.send_modify(|log| log.push(line)))
        });
    }
    receiver
}

/// What an error tells its caller.
pub struct Told {
    pub code: Code,
    pub reason: String,
    pub domain: String,
    pub metadata: HashMap<String, String>,
    pub details: ErrorDetails,
    pub pushback: Option<String>,
    pub request_id: String,
    pub message: String,
}

impl Told {
    pub fn of(status: &Status) -> Told {
        let details = status
            .check_error_details()
            .expect("details that can be decoded");
        let info = details.error_info().expect("an ErrorInfo").clone();
        let header = |name| {
            status
                .metadata()
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let encoded = status.message().len() + status.details().len().div_ceil(3) * 4;
        assert!(encoded <= 4096, "a status of {encoded} bytes");
        Told {
            code: status.code(),
            reason: info.reason,
            domain: info.domain,
            metadata: info.metadata,
            pushback: header("grpc-retry-pushback-ms"),
            request_id: header("x-request-id").expect("a request id"),
            message: status.message().to_owned(),
            details,
        }
    }

    pub fn outcome(&self) -> &str {
        &self.metadata["upstream_outcome"]
    }

    /// Checks the columns of a row, and what follows from the outcome on every row.
    #[track_caller]
    pub fn is(&self, code: Code, reason: &str, outcome: &str) {
        let told = (self.code, self.reason.as_str(), self.outcome());
        assert_eq!(told, (code, reason, outcome), "{}", self.message);
        self.keeps_the_rules();
    }

    /// What holds on every row, whatever it is.
    #[track_caller]
    pub fn keeps_the_rules(&self) {
        let uncertain = matches!(self.outcome(), "unknown" | "applied");
        assert_eq!(self.pushback.as_deref(), uncertain.then_some("-1"));
        assert!(
            !(uncertain && self.code == Code::Unavailable),
            "UNAVAILABLE says that nothing was applied"
        );
        assert_ne!(self.code, Code::Cancelled);
        assert_eq!(self.metadata["request_id"], self.request_id);
        assert_eq!(
            self.details.request_info().unwrap().request_id,
            self.request_id
        );
        assert_eq!(
            self.metadata.contains_key("attempts"),
            self.metadata.contains_key("upstream_status") || self.sent()
        );
        let known = [
            "upstream_outcome",
            "upstream_status",
            "upstream_error_code",
            "attempts",
            "request_id",
        ];
        assert!(
            self.metadata
                .keys()
                .all(|key| known.contains(&key.as_str())),
            "{:?}",
            self.metadata
        );
        assert!(matches!(
            self.domain.as_str(),
            "sqril-grpc" | "api.sqril.com"
        ));
    }

    fn sent(&self) -> bool {
        self.metadata.contains_key("attempts")
    }

    pub fn violations(&self) -> Vec<FieldViolation> {
        self.details
            .bad_request()
            .map(|bad| bad.field_violations.clone())
            .unwrap_or_default()
    }

    /// Field and reason of each violation.
    pub fn flaws(&self) -> Vec<(String, String)> {
        self.violations()
            .into_iter()
            .map(|violation| (violation.field, violation.reason))
            .collect()
    }

    pub fn retry_in(&self) -> Option<Duration> {
        self.details.retry_info().and_then(|info| info.retry_delay)
    }

    pub fn sqril_says(&self) -> Option<&str> {
        self.details
            .localized_message()
            .map(|message| message.message.as_str())
    }
}

/// A legal update of one field.
pub fn an_update() -> UpdateCustomerRequest {
    UpdateCustomerRequest {
        customer_id: "cus_1".into(),
        nationality: Some("PE".into()),
        ..Default::default()
    }
}

/// With metadata.
pub fn with(
    request: UpdateCustomerRequest,
    metadata: &[(&'static str, &str)],
) -> Request<UpdateCustomerRequest> {
    let mut request = Request::new(request);
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// What an upstream does once it has read a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Sends these bytes and listens for the next request.
    Say(Vec<u8>),
    /// Sends these bytes and closes.
    SayAndClose(Vec<u8>),
    /// Sends these bytes and resets the connection.
    SayAndReset(Vec<u8>),
    /// Sends these bytes and then nothing more.
    SayAndStall(Vec<u8>),
    /// Waits until the test lets it go on, then sends these bytes.
    SayWhenTold(Vec<u8>),
}

/// One request, as it came off the socket.
#[derive(Clone, Debug)]
pub struct Received {
    pub head: String,
    pub body: Vec<u8>,
}

impl Received {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }
}

/// An upstream on a bare socket.
pub struct Upstream {
    pub address: SocketAddr,
    reply: Arc<Mutex<Reply>>,
    received: Arc<Mutex<Vec<Received>>>,
    arrived: Arc<Notify>,
    hung_up: Arc<Notify>,
    go_on: Arc<Semaphore>,
}

impl Upstream {
    pub async fn start(reply: Reply) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Upstream {
            address: listener.local_addr().unwrap(),
            reply: Arc::new(Mutex::new(reply)),
            received: Arc::default(),
            arrived: Arc::default(),
            hung_up: Arc::default(),
            go_on: Arc::new(Semaphore::new(0)),
        };
        let (reply, received) = (Arc::clone(&upstream.reply), Arc::clone(&upstream.received));
        let (arrived, go_on) = (Arc::clone(&upstream.arrived), Arc::clone(&upstream.go_on));
        let hung_up = Arc::clone(&upstream.hung_up);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (reply, received) = (Arc::clone(&reply), Arc::clone(&received));
                let (arrived, go_on) = (Arc::clone(&arrived), Arc::clone(&go_on));
                let hung_up = Arc::clone(&hung_up);
                tokio::spawn(async move {
                    while let Some(request) = read_request(&mut stream).await {
                        received.lock().unwrap().push(request);
                        arrived.notify_one();
                        let reply = reply.lock().unwrap().clone();
                        if !act(&mut stream, reply, &go_on).await {
                            drop(stream);
                            hung_up.notify_one();
                            return;
                        }
                    }
                });
            }
        });
        upstream
    }

    /// An upstream that always answers so.
    pub async fn answering(status: u16, headers: &[(&str, &str)], body: &str) -> Upstream {
        Self::start(Reply::Say(http(status, headers, body.as_bytes()))).await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn reply(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    pub fn go_on(&self) {
        self.go_on.add_permits(1);
    }

    /// Waits until a request has been read whole.
    pub async fn asked(&self) {
        timeout(PATIENCE, self.arrived.notified())
            .await
            .expect("no request ever came");
    }

    /// Waits until a connection that was closed is closed on both sides.
    pub async fn hung_up(&self) {
        let notified = self.hung_up.notified();
        timeout(PATIENCE, notified)
            .await
            .expect("the connection stays open");
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The only request that came.
    pub fn the_request(&self) -> Received {
        let received = self.received();
        assert_eq!(received.len(), 1, "requests");
        received[0].clone()
    }
}

/// Does what the reply says. False when the connection is over.
async fn act(stream: &mut TcpStream, reply: Reply, go_on: &Semaphore) -> bool {
    match reply {
        Reply::Say(bytes) => stream.write_all(&bytes).await.is_ok(),
        Reply::SayAndClose(bytes) => {
            drop(stream.write_all(&bytes).await);
            drop(stream.shutdown().await);
            // Until the other side has seen it, and has closed as well.
            drop(tokio::io::copy(stream, &mut tokio::io::sink()).await);
            false
        }
        Reply::SayAndReset(bytes) => {
            drop(stream.write_all(&bytes).await);
            drop(socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO)));
            false
        }
        Reply::SayAndStall(bytes) => {
            drop(stream.write_all(&bytes).await);
            // Until the other side gives up.
            drop(stream.read(&mut [0]).await);
            false
        }
        Reply::SayWhenTold(bytes) => {
            go_on.acquire().await.unwrap().forget();
            stream.write_all(&bytes).await.is_ok()
        }
    }
}

/// Reads one request whole; `None` if the other side has closed.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Received> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |n| n.parse().unwrap());
    let mut body = bytes[end..].to_vec();
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Received { head, body })
}

/// A whole HTTP/1.1 answer.
pub fn http(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "HTTP/1.1 {status} Whatever\r\ncontent-length: {}\r\n",
        body.len()
    )
    .into_bytes();
    for (name, value) in headers {
        bytes.extend(format!("{name}: {value}\r\n").bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    bytes
}

pub const JSON: (&str, &str) = ("content-type", "application/json");
pub const HTML: (&str, &str) = ("content-type", "text/html");

/// A whole JSON answer.
pub fn json(status: u16, body: &str) -> Vec<u8> {
    http(status, &[JSON], body.as_bytes())
}

/// Sqril saying no.
pub fn sqril(code: &str) -> String {
    serde_json::json!({"error_code": code, "error_message": "No.", "details": {}}).to_string()
}

/// A profile with every field of the contract, of the customer of [`an_update`], after it.
pub fn a_profile() -> serde_json::Value {
    serde_json::json!({
        "customer_id": "cus_1", "name_first": "Ana", "name_last": "Prueba", "gender": "FEMALE", "ic_number": "X1",
        "ic_type": "NIC", "ic_country": "PE", "occupation": "OCC11", "country_of_residence": "PE",
        "phone": "+51000000001", "email": "ana@example.com", "nationality": "PE", "dob": "1990-01-31",
        "address": "Calle 1", "ic_expiry_date": "2099-01-01", "created_at": "2025-01-02T03:04:05.678Z",
        "updated_at": "2026-11-22T10:11:12+07:00", "allowed": {"PE": true, "ID": false},
    })
}

//! The page at `/` in a real browser: it ends real containers, it is live, what an agent supplies stays text, and thousands of rows scroll.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod harness;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::docker::{self, image};
use harness::lives::{end, outcome, until_all};
use harness::replica::Replica;
use harness::{Db, eventually};
use serde_json::{Value, json};
use tokio_postgres::Client;
use uuid::Uuid;

/// How long the page may take to show what is: it has a second for most of that.
const SOON: Duration = Duration::from_secs(20);

/// Chromium, driven over the wire. It goes with the test.
struct Browser {
    driver: Child,
    session: String,
    http: reqwest::Client,
}

impl Browser {
    /// With this page open.
    async fn open(url: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let driver = Command::new("chromedriver").arg(format!("--port={port}")).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let driver = driver.expect("chromedriver is installed");
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        let mut browser = Self { driver, session: String::new(), http };
        let asked = json!({"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,800"]},
        }}});
        let address = format!("http://127.0.0.1:{port}/session");
        let answer = eventually("the browser is there", Duration::from_secs(60), async || {
            let answer = browser.http.post(&address).json(&asked).send().await.ok()?;
            Some(answer.json::<Value>().await.unwrap())
        });
        let answer = answer.await;
        browser.session = format!("{address}/{}", answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("{answer}")));
        browser.ask("url", &json!({"url": url})).await;
        browser
    }

    async fn ask(&self, what: &str, body: &Value) -> Value {
        let answer = self.http.post(format!("{}/{what}", self.session)).json(body).send().await.unwrap();
        let mut answer: Value = answer.json().await.unwrap();
        assert!(answer["value"]["error"].is_null(), "{what}: {answer}");
        answer["value"].take()
    }

    /// What a script answers.
    async fn script(&self, text: &str) -> Value {
        self.ask("execute/sync", &json!({"script": text, "args": []})).await
    }

    async fn until(&self, what: &str, condition: &str) {
        eventually(what, SOON, async || (self.script(&format!("return {condition};")).await == true).then_some(())).await;
    }

    /// As a finger does it: at the place where the element is, if nothing covers it.
    async fn click(&self, selector: &str) {
        let element = self.ask("element", &json!({"using": "css selector", "value": selector})).await;
        let id = element.as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
        self.ask(&format!("element/{id}/click"), &json!({})).await;
    }

    async fn press(&self, key: &str) {
        let press = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        self.ask("actions", &json!({"actions": [{"type": "key", "id": "keys", "actions": press}]})).await;
    }

    /// What the browser complained about: scripts that broke, and whatever the policy stopped.
    async fn complaints(&self) -> Vec<Value> {
        let log = self.ask("se/log", &json!({"type": "browser"})).await;
        log.as_array().unwrap().iter().filter(|entry| entry["level"] != "INFO").cloned().collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its end is the browser's.
        let _asked = Command::new("curl").args(["-s", "-X", "DELETE", &self.session]).stdout(Stdio::null()).status();
        let _ended = self.driver.kill();
        let _status = self.driver.wait();
    }
}

async fn submit(client: &Client, arguments: &str) -> Uuid {
    client.query_one(&format!("select sundown.submit({arguments})"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_click_ends_a_real_container_and_the_page_says_so() {
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[]).await;
    let browser = Browser::open(&format!("http://{}/", replica.address)).await;
    browser.until("it is live", "document.getElementById('live').dataset.live === 'yes'").await;
    let of = |name: &str| {
        format!(
            "image => '{}', command => array['sh', '-c', 'echo hello from here; exec sleep 600'], ttl => '10m', grace => '0s', name => '{name}'",
            image()
        )
    };
    let (clicked, pressed, stays) =
        (submit(&client, &of("clicked")).await, submit(&client, &of("pressed")).await, submit(&client, &of("stays")).await);
    until_all(&client, &[clicked, pressed, stays], "running").await;
    // They came by themselves.
    browser.until("all three are shown as running", "document.querySelectorAll('#rows .state[data-state=running]').length === 3").await;
    browser
        .until(
            "their time runs down",
            "[...document.querySelectorAll('#rows .until span:last-child')].every((e) => /^in (9m|10m)/.test(e.textContent))",
        )
        .await;

    browser.click(&format!("#agent-{clicked} .who")).await;
    browser.until("its story is told", "document.querySelectorAll('#story ol li').length === 2").await;
    browser.until("its output is there", "document.querySelector('#story pre')?.textContent === 'hello from here\\n'").await;
    browser.click("#story [data-end]").await;
    // Whoever changes his mind ends nobody.
    browser.until("it asks whether that is meant", "document.getElementById('sure').open").await;
    browser.click("#sure [value=no]").await;
    browser.until("it asks no more", "!document.getElementById('sure').open").await;
    browser.click("#story [data-end]").await;
    browser.click("#sure [value=yes]").await;
    assert_eq!(outcome(&client, clicked).await, end("expired", "terminated", Some(137)));
    browser.until("it is gone from those that live", &format!("!document.getElementById('agent-{clicked}')")).await;

    // The same without a pointer: chosen, ended, and meant.
    browser.click("#back").await;
    browser.script("document.getElementById('list').focus()").await;
    let chosen = format!("document.querySelector('#rows [aria-selected=true]')?.dataset.id === '{pressed}'");
    for _ in 0..3 {
        if browser.script(&format!("return {chosen};")).await == true {
            break;
        }
        browser.press("\u{e015}").await;
    }
    browser.until("it is chosen", &chosen).await;
    browser.press("\u{e017}").await;
    browser.until("it asks whether that is meant", "document.getElementById('sure').open").await;
    browser.press("\u{e004}").await;
    browser.press("\u{e007}").await;
    assert_eq!(outcome(&client, pressed).await, end("expired", "terminated", Some(137)));
    browser.until("one is left", "document.querySelectorAll('#rows .row').length === 1").await;

    browser.click("nav [data-view=ended]").await;
    browser
        .until("the others are among those that have ended", "document.querySelectorAll('#rows .state[data-state=expired]').length === 2")
        .await;
    browser.click("nav [data-view=hosts]").await;
    browser.until("the host is shown", "/1 of \\d+/.test(document.getElementById('host-table').textContent)").await;
    assert_eq!(browser.complaints().await, Vec::<Value>::new());
    client.query_one("select sundown.terminate($1)", &[&stays]).await.unwrap();
    outcome(&client, stays).await;
    docker::leave_nothing(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_supplies_stays_text() {
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[]).await;
    let hostile = "<img src=x onerror=\"document.title=1\"><script>document.title=1</script>";
    let query =
        "select sundown.submit(image => $1, command => array['sh', '-c', 'echo \"$1\"; sleep 600', 'x', $2], ttl => '10m', grace => '0s',
                                       labels => jsonb_build_object('hostile', $2::text))";
    let id: Uuid = client.query_one(query, &[&image(), &hostile]).await.unwrap().get(0);
    until_all(&client, &[id], "running").await;
    let browser = Browser::open(&format!("http://{}/", replica.address)).await;
    let row = format!("document.getElementById('agent-{id}')");
    browser.until("it is shown", &format!("{row} !== null")).await;
    browser.click(&format!("#agent-{id} .who")).await;
    let shown = format!("document.querySelector('#story pre')?.textContent === {}", json!(format!("{hostile}\n")));
    browser.until("its output is shown as it is", &shown).await;
    for place in [format!("{row}.textContent"), "document.querySelector('#story dl').textContent".to_owned()] {
        assert!(browser.script(&format!("return {place};")).await.as_str().unwrap().matches(hostile).count() >= 1, "{place}");
    }
    assert_eq!(browser.script("return [document.title, document.images.length, document.scripts.length];").await, json!(["Sundown", 0, 1]));
    // And if it were no text: nothing runs that is not the page's own.
    let inline =
        "const s = document.createElement('script'); s.textContent = 'document.title = 1'; document.body.append(s); return document.title;";
    assert_eq!(browser.script(inline).await, "Sundown");
    client.query_one("select sundown.terminate($1)", &[&id]).await.unwrap();
    outcome(&client, id).await;
    docker::leave_nothing(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_agents_are_a_few_rows_at_a_time() {
    let db = Db::new().await;
    let client = db.client().await;
    let replica = Replica::start(&db.url(), &[]).await;
    // They wait for their time, and never run.
    let many = "select sundown.submit('busybox', name => 'n' || n, run_at => now() + interval '1 day', labels => jsonb_build_object('odd', (n % 2)::text))
                  from generate_series(1, 5000) n";
    client.batch_execute(many).await.unwrap();
    let browser = Browser::open(&format!("http://{}/", replica.address)).await;
    browser.until("all are counted", "document.getElementById('count-alive').textContent === '5000'").await;
    // To the end and back, drawing at each step: what is not seen is not in the page.
    let scrolled = browser.script(
        "const list = document.getElementById('list'), seen = new Set(), began = performance.now(); let most = 0;
         for (let top = 0; top <= list.scrollHeight; top += list.clientHeight) {
           list.scrollTop = top; list.dispatchEvent(new Event('scroll'));
           const rows = [...document.querySelectorAll('#rows .row')];
           most = Math.max(most, rows.length);
           rows.forEach((row) => seen.add(row.dataset.id));
         }
         return [seen.size, most, (performance.now() - began) / (list.scrollHeight / list.clientHeight)];",
    );
    let scrolled = scrolled.await;
    assert_eq!(scrolled[0], 5000, "each of them was shown: {scrolled}");
    assert!(scrolled[1].as_u64().unwrap() < 60, "{scrolled}");
    // Generous: a frame has 16 ms.
    assert!(scrolled[2].as_f64().unwrap() < 100.0, "ms for each screen: {scrolled}");
    let search = "const words = document.getElementById('words'); words.value = arguments[0]; words.dispatchEvent(new Event('input'));";
    browser.ask("execute/sync", &json!({"script": search, "args": ["odd=1 n499"]})).await;
    // n499, and of n4990 to n4999 the odd ones.
    browser.until("those that are searched for are shown", "document.querySelectorAll('#rows .row').length === 6").await;
    let more = "select sundown.submit('busybox', name => 'n499-new', run_at => now() + interval '1 day', labels => '{\"odd\": \"1\"}')";
    client.batch_execute(more).await.unwrap();
    browser.until("a new one comes by itself", "document.querySelectorAll('#rows .row').length === 7").await;
    assert_eq!(browser.complaints().await, Vec::<Value>::new());
}

// Node's postgres, also called postgres.js.

const assert = require('node:assert/strict');
const fs = require('node:fs');
const postgres = require('postgres');
const version = require('./node-version.cjs');

const { URL: url, OTHER_URL, HOST_URL, CLIENT, CA_FILE } = process.env;

async function place(address, settings = {}) {
    const sql = postgres(address, { max: 1, ...settings });
    const [{ name }] = await sql`select name from place`;
    await sql.end();
    return name;
}

async function main() {
    console.log(version('postgres'));
    assert.equal(await place(url), 'feature/login');
    assert.equal(await place(OTHER_URL), 'other');

    const sql = postgres(url);
    await sql`create table made (client text)`;
    await sql`insert into made ${sql({ client: CLIENT })}`;
    assert.equal((await sql`select client from made`)[0].client, CLIENT);
    await sql.end();

    assert.equal(await place(`${url}?sslmode=require`), 'feature/login');
    assert.equal(await place(url, { ssl: 'require' }), 'feature/login');
    const ca = fs.readFileSync(CA_FILE, 'utf8');
    const address = HOST_URL.replace(/@[^:]+:/, '@127.0.0.1:');
    const servername = new URL(HOST_URL).hostname;
    assert.equal(await place(address, { ssl: { ca, servername } }), 'feature/login');
}

main();

/** Checks of arguments and of JSON from a stranger: each returns the value as its type, or throws RcdeployError. */

import { RcdeployError } from "./errors.js";

export type JsonObject = { [key: string]: unknown };

export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function object(name: string, value: unknown): JsonObject {
  if (!isObject(value)) throw new RcdeployError(`${name} is ${shortened(value)}; it must be an object`);
  return value;
}

export function text(name: string, value: unknown): string {
  if (typeof value !== "string") throw new RcdeployError(`${name} is ${shortened(value)}; it must be a string`);
  return value;
}

export function number(name: string, value: unknown, low: number, high: number): number {
  if (typeof value !== "number" || !(low <= value && value <= high)) {
    throw new RcdeployError(`${name} is ${shortened(value)}; it must be a number from ${low} to ${high}`);
  }
  return value;
}

export function wholeNumber(name: string, value: unknown, low: number, high: number): number {
  if (!Number.isInteger(value) || !(low <= (value as number) && (value as number) <= high)) {
    throw new RcdeployError(`${name} is ${shortened(value)}; it must be a whole number from ${low} to ${high}`);
  }
  return value as number;
}

export function oneOf<T>(name: string, value: unknown, allowed: readonly T[]): T {
  if (!allowed.includes(value as T)) {
    throw new RcdeployError(`${name} is ${shortened(value)}; one of ${allowed.join(", ")} is allowed`);
  }
  return value as T;
}

export function parsedJson(name: string, bytes: Uint8Array): JsonObject {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new RcdeployError(`${name} is not JSON: ${(error as Error).message}`);
  }
  return object(name, value);
}

export function shortened(value: unknown): string {
  let shown = typeof value === "bigint" ? `${value}` : (JSON.stringify(value) ?? String(value));
  if (typeof value === "number" && !Number.isFinite(value)) shown = String(value);
  return shown.length <= 60 ? shown : `${shown.slice(0, 57)}...`;
}
